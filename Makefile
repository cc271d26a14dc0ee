# The doc site without Quarto, in _site/: what continuous integration and the browser tests look at
.PHONY: site
site:
	python docs/render.py --out _site
