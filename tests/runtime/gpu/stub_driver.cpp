// A libcuda that does nothing but say what it was asked for; built against the real header, so that types and
// structures are CUDA's own.
#include <cuda.h>
#include <cstring>

struct Seen {
  unsigned grid, block, shared, cooperative, attributes;
  void* stream;
  void* function;
  unsigned long long first;  // parameter
  int second;
  int launches, contexts, current, relaxed, largest_shared, value, count;
  unsigned long long address;
  unsigned char code[4];
};

extern "C" {
Seen seen;
int next_status[4];  // of the launches to come
int capture_number;

CUresult cuInit(unsigned) { return CUDA_SUCCESS; }
CUresult cuGetErrorString(CUresult error, const char** text) {
  *text = error == CUDA_ERROR_MISALIGNED_ADDRESS ? "misaligned address" : "another error";
  return CUDA_SUCCESS;
}
CUresult cuDeviceGet(CUdevice* device, int ordinal) {
  *device = 100 + ordinal;
  return ordinal < 2 ? CUDA_SUCCESS : CUDA_ERROR_INVALID_DEVICE;
}
CUresult cuDeviceGetName(char* name, int size, CUdevice) {
  strncpy(name, "Stub", size);
  return CUDA_SUCCESS;
}
CUresult cuDeviceGetAttribute(int* value, CUdevice_attribute attribute, CUdevice device) {
  *value = 1000 * (device - 100) + attribute;
  return CUDA_SUCCESS;
}
CUresult cuDevicePrimaryCtxRetain(CUcontext* context, CUdevice device) {
  seen.contexts++;
  *context = reinterpret_cast<CUcontext>(static_cast<long long>(device));
  return CUDA_SUCCESS;
}
CUresult cuCtxSetCurrent(CUcontext context) {
  seen.current = static_cast<int>(reinterpret_cast<long long>(context));
  return CUDA_SUCCESS;
}
CUresult cuModuleLoadData(CUmodule* module, const void* code) {
  memcpy(seen.code, code, sizeof seen.code);
  seen.value = seen.relaxed;
  *module = reinterpret_cast<CUmodule>(7);
  return CUDA_SUCCESS;
}
CUresult cuModuleGetFunction(CUfunction* function, CUmodule module, const char* name) {
  if (module != reinterpret_cast<CUmodule>(7) || strcmp(name, "wolong")) return CUDA_ERROR_NOT_FOUND;
  *function = reinterpret_cast<CUfunction>(11);
  return CUDA_SUCCESS;
}
CUresult cuFuncSetAttribute(CUfunction, CUfunction_attribute attribute, int value) {
  if (attribute == CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES) seen.largest_shared = value;
  return CUDA_SUCCESS;
}
CUresult cuOccupancyMaxActiveBlocksPerMultiprocessor(int* blocks, CUfunction, int threads, size_t shared) {
  *blocks = static_cast<int>(shared) / threads;
  return CUDA_SUCCESS;
}
CUresult cuLaunchKernelEx(const CUlaunchConfig* config, CUfunction function, void** parameters, void** extra) {
  int status = next_status[0];
  memmove(next_status, next_status + 1, sizeof next_status - sizeof *next_status);
  seen.launches++;
  if (config->gridDimY * config->gridDimZ * config->blockDimY * config->blockDimZ != 1 || extra)
    return CUDA_ERROR_INVALID_VALUE;
  seen.grid = config->gridDimX, seen.block = config->blockDimX, seen.shared = config->sharedMemBytes;
  seen.stream = config->hStream, seen.function = function, seen.attributes = config->numAttrs;
  seen.cooperative = config->attrs[0].id == CU_LAUNCH_ATTRIBUTE_COOPERATIVE && config->attrs[0].value.cooperative;
  memcpy(&seen.first, parameters[0], sizeof seen.first);
  memcpy(&seen.second, parameters[1], sizeof seen.second);
  return static_cast<CUresult>(status);
}
CUresult cuMemsetD32Async(CUdeviceptr address, unsigned value, size_t count, CUstream stream) {
  seen.address = address, seen.value = value, seen.count = count, seen.stream = stream;
  return CUDA_SUCCESS;
}
CUresult cuStreamGetCaptureInfo_v2(
    CUstream, CUstreamCaptureStatus* status, cuuint64_t* number, CUgraph*, const CUgraphNode**, size_t*) {
  *status = capture_number ? CU_STREAM_CAPTURE_STATUS_ACTIVE : CU_STREAM_CAPTURE_STATUS_NONE;
  *number = capture_number;
  return CUDA_SUCCESS;
}
CUresult cuThreadExchangeStreamCaptureMode(CUstreamCaptureMode* mode) {
  auto before = seen.relaxed ? CU_STREAM_CAPTURE_MODE_RELAXED : CU_STREAM_CAPTURE_MODE_GLOBAL;
  seen.relaxed = *mode == CU_STREAM_CAPTURE_MODE_RELAXED;
  *mode = before;
  return CUDA_SUCCESS;
}
}
