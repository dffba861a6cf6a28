"""What an optimizer's own averages say of the gradients while it trains: :class:`svag.Monitor`."""
