/* A driver's management library with one card that is not there: what nvidia-ml-py asks before anything is computed. */
#include <stdio.h>

typedef struct { unsigned long long total, free, used; } Memory;

static int text(char *buffer, unsigned size, const char *value) { snprintf(buffer, size, "%s", value); return 0; }

int nvmlInit_v2(void) { return 0; }
int nvmlInitWithFlags(unsigned flags) { return 0; }
int nvmlShutdown(void) { return 0; }
const char *nvmlErrorString(int code) { return "stub"; }
int nvmlSystemGetDriverVersion(char *buffer, unsigned size) { return text(buffer, size, "550.54.14"); }
int nvmlSystemGetCudaDriverVersion_v2(int *version) { *version = 12040; return 0; }
int nvmlDeviceGetCount_v2(unsigned *count) { *count = 1; return 0; }
int nvmlDeviceGetHandleByIndex_v2(unsigned index, void **device) { *device = (void *)1; return index ? 2 : 0; }
int nvmlDeviceGetName(void *device, char *buffer, unsigned size) { return text(buffer, size, "NVIDIA GeForce RTX 4070 Ti"); }
int nvmlDeviceGetUUID(void *device, char *buffer, unsigned size) { return text(buffer, size, "GPU-stub"); }
int nvmlDeviceGetMemoryInfo(void *device, Memory *memory) { *memory = (Memory){12878610432ULL, 12564037632ULL, 314572800ULL}; return 0; }
int nvmlDeviceGetCudaComputeCapability(void *device, int *major, int *minor) { *major = 8; *minor = 9; return 0; }
int nvmlDeviceGetComputeRunningProcesses_v3(void *device, unsigned *count, void *processes) { *count = 0; return 0; }
