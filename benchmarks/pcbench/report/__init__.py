"""`pcbench report`: latencies as a page, or as Markdown, with plots."""
