"The package, as settings.ini describes it; nothing is said here that is not read from there."

from configparser import ConfigParser
from pathlib import Path

from setuptools import find_packages, setup

config = ConfigParser(delimiters=["="])
config.read(Path(__file__).with_name("settings.ini"), encoding="utf-8")
settings = config["DEFAULT"]
extras = {
    k.removesuffix("_requirements"): v.split()
    for k, v in settings.items()
    if k.endswith("_requirements")
}
DATA = "toml json jsonl csv html css js svg".split()  # what lies in the package beside Python
readme = Path(__file__).with_name("README.md")

setup(
    name=settings["lib_name"],
    version=settings["version"],
    description=settings["description"],
    long_description=readme.read_text(encoding="utf-8") if readme.exists() else "",
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    url=settings["git_url"],
    packages=find_packages(include=["llama_course", "llama_course.*"]),
    package_data={"llama_course": [f"**/*.{kind}" for kind in DATA]},
    python_requires=f">={settings['min_python']}",
    install_requires=settings["requirements"].split(),
    extras_require=extras,
    entry_points={"console_scripts": settings["console_scripts"].split()},
)
