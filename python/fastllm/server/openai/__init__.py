"""The endpoints under ``/v1`` that speak OpenAI's dialect, one family a file."""
