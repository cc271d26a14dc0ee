"""Everything about the package stands in settings.ini; this hands it to setuptools."""
from configparser import ConfigParser
from pathlib import Path
from setuptools import find_namespace_packages, setup

parser = ConfigParser(delimiters=["="], interpolation=None)
parser.read("settings.ini", encoding="utf-8")
cfg = parser["DEFAULT"]

setup(
    name=cfg["lib_name"], version=cfg["version"], description=cfg["description"], keywords=cfg["keywords"],
    author=cfg["author"], author_email=cfg["author_email"], url=cfg["git_url"],
    license="Apache-2.0", license_files=["LICENSE"],
    long_description=Path("README.md").read_text(encoding="utf-8"), long_description_content_type="text/markdown",
    # namespace packages: lmac/weights, lmac/configs and lmac/static, which hold no Python, count too; MANIFEST.in names their files
    packages=find_namespace_packages(include=["lmac", "lmac.*"], exclude=["*__pycache__*"]), include_package_data=True,
    python_requires=">=" + cfg["min_python"],
    install_requires=cfg["requirements"].split(), extras_require={key.removesuffix("_requirements"): value.split() for key, value in cfg.items() if key.endswith("_requirements")},
    entry_points={"console_scripts": cfg["console_scripts"].split(),
                  "nbdev": [f"{cfg['lib_name']}={cfg['lib_path']}._modidx:d"]},
    classifiers=["Development Status :: 3 - Alpha", "Intended Audience :: Science/Research",
                 "Programming Language :: Python :: 3", "Topic :: Multimedia :: Sound/Audio :: Analysis"],
    zip_safe=False,
)
