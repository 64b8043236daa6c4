// The path "generic": plain C, for every processor.
#define PLAIN
#include "path.h"

#include "lanes_generic.h"

#include "rows.h"

#include "matmul.h"

#include "attention.h"

#include "execute.h"

static int works(void) { return 1; }

const qc_path qc_generic = {"generic", works, run, argmax, exp_row};
