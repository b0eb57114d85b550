"""Client and server put together on one machine: the simulation and its demo hospitals."""
