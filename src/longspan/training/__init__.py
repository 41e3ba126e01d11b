"""Training: the LightningModule, the optimizer, the schedules, the callbacks, the loggers and the reports."""
