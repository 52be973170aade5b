"""Pages of one HTML file that need no network: what all of them share.

``html.py`` puts a page together, ``page_parts.js`` and ``page_parts.css`` are in each, ``terminal.py`` makes text of
strangers harmless, ``series_styles.py`` gives series of pictures and pages their colours and line styles.
"""
