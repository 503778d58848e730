"""From a trained model to a folder that other people's tools load, with the proof of where it comes from."""
