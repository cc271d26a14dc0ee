# Plain pages without Quarto, in _site/: what the browser tests look at
.PHONY: site page
site: page
	python docs/render.py --out _site
	python docs/page.py --site _site

# The page on which a visitor drops a recording: what it needs from npm, and the explainer as ONNX
page:
	npm ci --prefix docs/try_it --ignore-scripts
	python docs/page.py
