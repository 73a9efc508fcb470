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

extensions = ["myst_nb", "sphinx_copybutton", "sphinx-mathjax-offline"]
exclude_patterns = []

nb_execution_mode = "off"  # the outputs that are committed are the ones that are shown
nb_merge_streams = True
nb_render_markdown_format = "myst"
myst_enable_extensions = ["dollarmath", "amsmath"]
myst_heading_anchors = 3
copybutton_exclude = ".linenos, .gp, .go"

highlight_language = "none"  # a block that names no language is plain text

html_theme = "sphinx_book_theme"
html_title = project
html_favicon = "_static/icon.svg"
html_static_path = ["_static"]
html_css_files = ["course.css"]
html_copy_source = False
html_show_sphinx = False
html_last_updated_fmt = None
html_context = {"default_mode": "auto"}
html_theme_options = {
    "navbar_persistent": [],  # the search field stands in the menu
    "use_download_button": False,
    "use_fullscreen_button": False,
    "show_toc_level": 2,
    "pygments_light_style": "a11y-high-contrast-light",
    "pygments_dark_style": "a11y-high-contrast-dark",
}
