"""Bytes, digests and places: local folders and S3, and nothing about models or flows."""
