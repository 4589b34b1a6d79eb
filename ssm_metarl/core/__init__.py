"""Stage 3: sequence models and the policy that reads actions from them."""
