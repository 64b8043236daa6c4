#define _GNU_SOURCE
#include <sys/mman.h>

#include "native.h"

enum { huge = 2 << 20 };

// qc_map maps whole huge pages: a region that is aligned to them is what the system can back with
// them, and weights are read through far fewer entries of the TLB then.
void *qc_map(size_t bytes) {
	size_t size = (bytes + huge - 1) / huge * huge;
	if (size < bytes || size + huge < size)
		return NULL;
	char *p = mmap(NULL, size + huge, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (p == MAP_FAILED)
		return NULL;
	size_t before = -(uintptr_t)p & (huge - 1);
	if (before)
		munmap(p, before);
	munmap(p + before + size, huge - before);
#ifdef MADV_HUGEPAGE
	madvise(p + before, size, MADV_HUGEPAGE);
#endif
	return p + before;
}

void qc_unmap(void *p, size_t bytes) { munmap(p, (bytes + huge - 1) / huge * huge); }
