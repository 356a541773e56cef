"""What the features of a network are good for: linear probes, nearest neighbours, fine-tuning."""
