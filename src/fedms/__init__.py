"""fedms: personalised federated fine-tuning of foundation models."""
