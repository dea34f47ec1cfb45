"""Structured outputs: grammars through llguidance (extra ``[structured]``), masks made beside the engine."""
