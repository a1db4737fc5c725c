"""Results for people: tables on the terminal, CSV and Markdown, and one HTML page."""
