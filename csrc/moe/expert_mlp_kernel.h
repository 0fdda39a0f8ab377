#include "moe/activation.h"
#include "moe/dot_tile.h"
#include "moe/expert_mlp.h"
