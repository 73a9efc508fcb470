"Sphinx's configuration. build.py writes the pages; nothing on them comes from another host."

from configparser import ConfigParser
from pathlib import Path

settings = ConfigParser(delimiters=["="], interpolation=None)
settings.read(Path(__file__).parent.parent / "settings.ini", encoding="utf-8")
about = settings["DEFAULT"]

project = about["title"]
author = about["author"]
release = version = about["version"]
copyright = about["copyright"]

extensions = [
    "myst_nb",
    "sphinx.ext.githubpages",  # .nojekyll
    "sphinx_copybutton",
    "sphinx-mathjax-offline",
    "sphinx_sitemap",
    "sphinxext.opengraph",
    "notfound.extension",
]
exclude_patterns = []

nb_execution_mode = "off"  # the outputs that are committed are the ones that are shown
nb_merge_streams = True
nb_render_markdown_format = "myst"
nb_code_prompt_show = "Show the code"
nb_code_prompt_hide = "Hide the code"
myst_enable_extensions = ["dollarmath", "amsmath"]
myst_heading_anchors = 3
copybutton_exclude = ".linenos, .gp, .go"
add_module_names = False
toc_object_entries = False
python_use_unqualified_type_names = True

highlight_language = "none"  # a block that names no language is plain text

# The line `git_url` of settings.ini brings every link to the repository, `discuss_url` the one to
# the place where people talk; without them there is none.
repository = about.get("git_url", "").strip().rstrip("/")
branch = about.get("branch", "main")
discuss = about.get("discuss_url", "").strip()
buttons = dict.fromkeys(("repository", "issues", "edit_page", "source"), bool(repository))

html_theme = "sphinx_book_theme"
html_title = project
html_favicon = "_static/icon.svg"
html_static_path = ["_static"]
html_css_files = ["course.css"]
html_js_files = ["page.js"]
html_search_scorer = str(Path(__file__).parent / "_static" / "scorer.js")
html_show_search_summary = False  # Sphinx's own fetches pages, which file:// forbids: search.js
html_copy_source = True  # what the download button gives
html_show_sphinx = False
html_last_updated_fmt = None
html_baseurl = f"{about['doc_host']}{about['doc_baseurl']}/"
html_context = {"default_mode": "auto"}
html_theme_options = {
    "navbar_persistent": [],  # the search field stands in the menu
    "use_fullscreen_button": False,
    "show_toc_level": 2,
    "show_navbar_depth": 1,
    "pygments_light_style": "a11y-high-contrast-light",
    "pygments_dark_style": "a11y-high-contrast-dark",
    "extra_footer": f"{about['description']}. Code and text: Apache License 2.0.",
    **{f"use_{name}_button": wanted for name, wanted in buttons.items()},
}
if repository:
    html_theme_options |= {
        "repository_url": repository,
        "repository_branch": branch,
        "path_to_docs": "",
        "launch_buttons": {
            "binderhub_url": "https://mybinder.org",
            "notebook_interface": "jupyterlab",
            "colab_url": "https://colab.research.google.com",
        },
    }

sitemap_url_scheme = "{link}"
sitemap_show_lastmod = False
ogp_site_url = html_baseurl
ogp_image = "_static/card.png"
ogp_image_alt = about["description"]
ogp_description_length = 160
ogp_enable_meta_description = True
ogp_social_cards = {"enable": False}
notfound_context = {
    "title": "Page not found",
    "body": "<h1>Page not found</h1><p>The search and the menu lead to all pages.</p>",
}
notfound_urls_prefix = f"{about['doc_baseurl']}/"

HOME = "nbs/index.ipynb"  # the notebook that the first page is made from
MADE = ("api/", "parts/")  # pages without a file in the repository


def fit_buttons(app, pagename, templatename, context, doctree):
    "Buttons lead to the file that a page is made from; a page without one has none of them."
    made = pagename.startswith(MADE) or not context.get("page_source_suffix")
    for group in context.get("header_buttons", []):
        kept = []
        for button in group.get("buttons", []):
            if made and button["label"] not in ("source-repository-button", "source-issues-button"):
                continue
            if pagename == "index" and "url" in button and "_sources" not in button["url"]:
                button["url"] = button["url"].replace("index.ipynb", HOME)
                button["url"] = button["url"].replace(f"nbs/{HOME}", HOME)
            if pagename == "index" and button.get("label", "").startswith("launch-"):
                button["url"] = button["url"].replace(
                    "urlpath=lab/tree/index", "urlpath=lab/tree/nbs/index"
                )
            kept.append(button)
        group["buttons"] = kept
    context["header_buttons"] = [
        group for group in context.get("header_buttons", []) if group.get("buttons") != []
    ]
    if discuss:
        words = {"tooltip": "Ask, answer, discuss", "icon": "fas fa-comments"}
        button = {"type": "link", "url": discuss, "label": "discuss-button", **words}
        context["header_buttons"].append(button)


def search_scripts(app, pagename, templatename, context, doctree):
    "The text of all pages, which only the search page needs."
    if pagename == "search":
        app.add_js_file("sentences.js")
        app.add_js_file("search.js")


def setup(app):
    app.connect("html-page-context", fit_buttons, priority=900)
    app.connect("html-page-context", search_scripts)
