"""From axes to a plan: a table with a row for each image, which is never whole in memory.

axis       what is swept: axes as written, and the column of values that each key has over its axis
draft      the space of all cells: a configuration for each choice of options, and columns that are laid over it
part       that space, divided where some columns change: few parts stand for all cells
kind       parts whose cells load the same weights and may share a batch; checks look at these
resolve    checks a draft, finds its files, and makes it a plan
order      which cell comes at which place, by arithmetic over parts
image_ids  the ids of many cells at a time, as `identity` defines them
repeat     cells that make the same image as another
bitmap     which cells of the order are in the plan
plan       any slice of the result, cut into shards
store      the plan as a file, and read back by workers
"""
