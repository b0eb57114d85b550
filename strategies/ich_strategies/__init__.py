"""Federated algorithms, each with both halves: the client's update and the server's."""
