"""The networks described: parts, parameters, operations, pictures, the reach of the attention."""
