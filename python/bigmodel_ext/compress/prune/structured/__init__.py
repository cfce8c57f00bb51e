"""Physical removal of channels, neurons and heads: graph and parts (what depends on what), heads, units and ranking
(what is least important), policy (how many go), eliminate and refit (what the rest makes up for), verify, pruner."""
