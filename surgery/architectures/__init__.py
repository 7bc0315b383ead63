"""What llama.cpp's architectures do with a layer's place, the number of layers and each tensor of a layer.

`registry.architecture` gives a description by its name; `rows/` holds one line of data for each architecture that
llama-cpp-python 0.3.36 knows, read from `src/models/*.cpp`. What a description does not say is refused.
"""
