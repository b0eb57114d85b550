"""What both sides share: networks, losses, data types, configuration, protocol and metrics."""
