"""The tabs: layout and wiring only, ``build(page)`` each; `parts` has what they share."""
