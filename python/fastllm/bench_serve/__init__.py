"""Load for an OpenAI-compatible server: the standard workloads, clients that keep time, and a report."""
