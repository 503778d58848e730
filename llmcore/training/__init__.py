"""Pretraining: loader, loop, checkpoints, and the stage that watches over them."""
