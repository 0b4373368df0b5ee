"""Studies: several runs beside each other, and what their seeds say."""
