"""Second derivatives of the loss: products with the Hessian, and what they show."""
