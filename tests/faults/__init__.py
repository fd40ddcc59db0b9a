"""Faults thrown at the stream, the audit's verdict on what is left, and for each the control that must fail: `make faults-stream`."""
