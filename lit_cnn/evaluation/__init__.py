"""What a network is worth on images it has not seen: views, stored logits, ensembles, differences with their error."""
