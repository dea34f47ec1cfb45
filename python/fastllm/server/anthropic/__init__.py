"""The endpoints that speak Anthropic's dialect."""
