"""Re-rolling: the repeated body of an unrolled recurrence becomes one `scan`.

An unrolled loop is a graph with a partial *shift map*: "this node, one step later". It is grown from one
pair of nodes along the edges (grow_shift), so the order of nodes does not matter; chains of the map are the
rows of a body (orbits), a window of steps is chosen (place_window), and what is left is proved operand by
operand (check_loop). Soundness rests on that proof alone; everything before it only proposes.
"""
