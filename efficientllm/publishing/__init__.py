"""Finished runs as folders of a static site: reports/published/<name>/, and the page that lists them."""
