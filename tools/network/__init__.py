"""Descriptions of the networks: parts, parameters, operations, drawings, and the span of the attention."""
