"""The HTTP server: OpenAI's protocol over the engine of each bundle, its limits, its metrics and its page."""
