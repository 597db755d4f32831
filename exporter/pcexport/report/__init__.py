"""`report.html` of a bundle, and the pages, charts and templates of all reports."""
