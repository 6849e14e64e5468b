"""The blind vote on a run's recorded answers: who voted what, the result, and a model as judge."""
