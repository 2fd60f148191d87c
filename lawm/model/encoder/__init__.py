"""Frames -> states: a frozen encoder, causal in time. One file an encoder; weights that come in files are apart."""
