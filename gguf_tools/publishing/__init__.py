"""Files published with a GGUF on the hub: model card and Modelfile."""
