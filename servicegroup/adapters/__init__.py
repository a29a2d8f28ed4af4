"""Servers and consumers of other libraries as services: one file for each library."""
