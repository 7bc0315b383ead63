"""What lies beside a file on the hub: model card and Modelfile."""
