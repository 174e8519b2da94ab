"""A shop whose carts are sessions in a Causeway cluster, and whose visits are counted in its cache."""
