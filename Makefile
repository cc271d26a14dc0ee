# Plain pages without Quarto, in _site/: what the browser tests look at
.PHONY: site
site:
	python docs/render.py --out _site
