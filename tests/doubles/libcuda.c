/* A CUDA driver without a GPU, so that the real Python bindings run in tests.
 *
 * It is stricter than a GPU. Work on a stream is queued, and runs only when the host synchronises,
 * bound by nothing but stream order and cuStreamWaitEvent. How much runs then, and in which order,
 * is the schedule; each finds other mistakes, and all of them are what a GPU may do:
 *
 *   late      only what the awaited event needs: a missing wait, or a host that reads too early,
 *             finds bytes of before
 *   others    all that other streams can run comes first: who overwrites what another stream has
 *             yet to read is found
 *   at once   everything when it is queued: who hands out a buffer that the next copy overwrites
 *   random    anything in between, repeatable
 *
 * Device addresses are no addresses of the host (touching one is a segmentation fault), are never
 * used twice, and lie apart. Memory begins as 0xCD, and freed page-locked memory becomes 0xDD. What
 * a GPU would let pass or punish by chance is written down as a violation: copies beyond an
 * allocation, asynchronous copies of memory that is not page-locked, handles that were destroyed,
 * freeing what queued work still names. Where it is kinder than a GPU: capturing does not spread
 * to other streams by events, and all streams are non-blocking (the default one orders nothing).
 */

#define _GNU_SOURCE
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define EXPORT __attribute__((visibility("default")))
#define COUNT(array) (sizeof(array) / sizeof(*(array)))

enum {
    OK = 0, INVALID_VALUE = 1, OUT_OF_MEMORY = 2, NOT_INITIALIZED = 3, NO_DEVICE = 100,
    INVALID_DEVICE = 101, INVALID_CONTEXT = 201, ECC = 214, INVALID_HANDLE = 400, NOT_FOUND = 500,
    NOT_READY = 600, ILLEGAL_ADDRESS = 700, LAUNCH_TIMEOUT = 702, ASSERT = 710,
    LAUNCH_FAILED = 719, NOT_PERMITTED = 800, NOT_SUPPORTED = 801, CAPTURE_UNSUPPORTED = 900,
    CAPTURE_INVALIDATED = 901, CAPTURE_ISOLATION = 905, CAPTURED_EVENT = 907, UNKNOWN = 999
};

static const struct { int code; const char *name, *text; } errors[] = {
    {0, "CUDA_SUCCESS", "no error"},
    {1, "CUDA_ERROR_INVALID_VALUE", "invalid argument"},
    {2, "CUDA_ERROR_OUT_OF_MEMORY", "out of memory"},
    {3, "CUDA_ERROR_NOT_INITIALIZED", "initialization error"},
    {100, "CUDA_ERROR_NO_DEVICE", "no CUDA-capable device is detected"},
    {101, "CUDA_ERROR_INVALID_DEVICE", "invalid device ordinal"},
    {201, "CUDA_ERROR_INVALID_CONTEXT", "invalid device context"},
    {214, "CUDA_ERROR_ECC_UNCORRECTABLE", "uncorrectable ECC error encountered"},
    {400, "CUDA_ERROR_INVALID_HANDLE", "invalid resource handle"},
    {500, "CUDA_ERROR_NOT_FOUND", "named symbol not found"},
    {600, "CUDA_ERROR_NOT_READY", "device not ready"},
    {700, "CUDA_ERROR_ILLEGAL_ADDRESS", "an illegal memory access was encountered"},
    {702, "CUDA_ERROR_LAUNCH_TIMEOUT", "the launch timed out and was terminated"},
    {710, "CUDA_ERROR_ASSERT", "device-side assert triggered"},
    {719, "CUDA_ERROR_LAUNCH_FAILED", "unspecified launch failure"},
    {800, "CUDA_ERROR_NOT_PERMITTED", "operation not permitted"},
    {801, "CUDA_ERROR_NOT_SUPPORTED", "operation not supported"},
    {900, "CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED", "operation not permitted when stream is capturing"},
    {901, "CUDA_ERROR_STREAM_CAPTURE_INVALIDATED", "operation failed due to a previous error during capture"},
    {905, "CUDA_ERROR_STREAM_CAPTURE_ISOLATION", "dependency created on uncaptured work in another stream"},
    {907, "CUDA_ERROR_CAPTURED_EVENT", "operation not permitted on an event last recorded in a capturing stream"},
    {999, "CUDA_ERROR_UNKNOWN", "unknown error"},
};

/* What lives. Structures are small and stay until the end, so that a handle is told from nonsense. */

enum kind { ALLOCATION, PINNED, STREAM, EVENT, GRAPH, EXECUTABLE, KINDS };
static const char *kind_names[KINDS] = {
    "allocation", "pinned", "stream", "event", "graph", "executable"};

enum what { COPY_IN, COPY_OUT, COPY_ON, FILL, CALL, RECORD, WAIT };

struct op {
    enum what what;
    uint64_t to, from;
    size_t size;
    int value;
    void (*function)(void *);
    void *data;
    struct thing *event, *stream; /* of WAIT: the stream and its count that it waits for */
    long count;
    struct op *next;
};

struct thing {
    enum kind kind;
    int dead;
    uint64_t address; /* of memory, as the caller knows it */
    size_t size;
    char *bytes;
    struct op *first, *last; /* of streams and graphs */
    long queued, ran;
    struct thing *capture;
    pthread_t capturer;
    int broken, flags, priority;
    struct thing *where; /* of events: the stream of the last record, and its count */
    long count;
    double time;
    struct thing *captured;
    struct thing *next;
};

static struct thing *things, default_stream = {.kind = STREAM};
static pthread_mutex_t mutex = PTHREAD_RECURSIVE_MUTEX_INITIALIZER_NP;
static int initialized, retained, lost, devices = 1, schedule, live[KINDS];
static size_t total = (size_t)1 << 30, used;
static uint64_t next_address = 0x7e0000000000;
static unsigned random_state = 1;
static char violations[4096];
static struct { const char *name; long calls; int error, skip; } calls[256];
static struct { char name[48]; int error, skip; } planned[16];
static char a_context;
static __thread int depth, in_callback;

enum { LATE, OTHERS, AT_ONCE, RANDOM };

static void violation(const char *format, const char *function, uint64_t a, uint64_t b) {
    size_t length = strlen(violations);
    snprintf(violations + length, sizeof violations - length, format, function, a, b);
}

static struct thing *add(enum kind kind) {
    struct thing *thing = calloc(1, sizeof *thing);
    thing->kind = kind;
    thing->next = things;
    things = thing;
    live[kind]++;
    return thing;
}

static struct thing *find(enum kind kind, const void *handle) {
    if (kind == STREAM && (uintptr_t)handle <= 2) return &default_stream;
    for (struct thing *t = things; t; t = t->next)
        if (t == handle && t->kind == kind && !t->dead) return t;
    return NULL;
}

static void end(struct thing *thing) {
    thing->dead = 1;
    live[thing->kind]--;
}

/* The living allocation that holds [address, address + size), or none. */
static struct thing *holder(enum kind kind, uint64_t address, size_t size) {
    for (struct thing *t = things; t; t = t->next)
        if (t->kind == kind && !t->dead && address >= t->address &&
            address + size <= t->address + t->size && address + size >= address)
            return t;
    return NULL;
}

static char *device_bytes(uint64_t address, size_t size) {
    struct thing *t = holder(ALLOCATION, address, size);
    return t ? t->bytes + (address - t->address) : NULL;
}

static int is_lasting(int error) {
    return error == ECC || error == ILLEGAL_ADDRESS || error == LAUNCH_TIMEOUT || error == ASSERT ||
           error == LAUNCH_FAILED;
}

static int planned_error(const char *function) {
    for (size_t i = 0; i < COUNT(planned); i++) {
        if (!planned[i].error || strcmp(planned[i].name, function)) continue;
        if (planned[i].skip-- > 0) return OK;
        int error = planned[i].error;
        planned[i].error = 0;
        if (is_lasting(error)) lost = error;
        return error;
    }
    return OK;
}

/* Every function begins here: counts the call, and finds the reasons to refuse it. */
enum { CONTEXT = 1, EVEN_IF_LOST = 2, NOT_WHILE_CAPTURING = 4 };

static int enter(const char *function, int flags) {
    for (size_t i = 0; i < COUNT(calls); i++) {
        if (!calls[i].name) calls[i].name = function;
        if (!strcmp(calls[i].name, function) && ++calls[i].calls) break;
    }
    if (in_callback) {
        violation("%s was called in a host function\n", function, 0, 0);
        return NOT_PERMITTED;
    }
    if (!initialized && strcmp(function, "cuInit")) return NOT_INITIALIZED;
    int error = planned_error(function);
    if (error) return error;
    if (lost && !(flags & EVEN_IF_LOST)) return lost;
    if (flags & CONTEXT && (!retained || !depth)) return INVALID_CONTEXT;
    if (flags & NOT_WHILE_CAPTURING)
        for (struct thing *t = things; t; t = t->next)
            if (t->kind == STREAM && !t->dead && t->capture &&
                pthread_equal(t->capturer, pthread_self())) {
                t->broken = 1;
                return CAPTURE_UNSUPPORTED;
            }
    return OK;
}

static void leave(int *_) { (void)_; pthread_mutex_unlock(&mutex); }
#define ENTER(function, flags)                                     \
    __attribute__((cleanup(leave))) int entered = pthread_mutex_lock(&mutex); \
    entered = enter(function, flags);                              \
    if (entered) return entered

/* Running what is queued. */

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1e3 + t.tv_nsec / 1e6;
}

static void call(struct op *op) {
    pthread_mutex_unlock(&mutex); /* it may wait for Python's own lock */
    in_callback++;
    op->function(op->data);
    in_callback--;
    pthread_mutex_lock(&mutex);
}

static void perform(struct thing *stream, struct op *op) {
    if (op->what == RECORD) {
        if (op->event->where == stream && op->event->count == op->count) op->event->time = now();
        return;
    }
    if (op->what == WAIT) return;
    if (planned_error("work")) return;
    if (op->what == CALL) {
        call(op);
        return;
    }
    char *to = op->what == COPY_OUT ? (char *)op->to : device_bytes(op->to, op->size);
    char *from = op->what == COPY_IN ? (char *)op->from : device_bytes(op->from, op->size);
    if ((op->what == COPY_OUT && !holder(PINNED, op->to, op->size)) ||
        (op->what == COPY_IN && !holder(PINNED, op->from, op->size)))
        to = NULL;
    if (!to || (op->what != FILL && !from)) {
        violation("%s: queued work names freed memory at %#lx (%lu bytes)\n", "stream", op->to,
                  op->size);
        lost = ILLEGAL_ADDRESS;
    } else if (op->what == FILL)
        memset(to, op->value, op->size);
    else
        memmove(to, from, op->size);
}

static int is_blocked(struct op *op) {
    return op->what == WAIT && op->stream->ran < op->count;
}

/* Whether one more operation of the stream could run, and did. */
static int run_one(struct thing *stream) {
    struct op *op = stream->first;
    if (!op || is_blocked(op) || lost) return 0;
    stream->first = op->next;
    if (!stream->first) stream->last = NULL;
    perform(stream, op);
    stream->ran++;
    free(op);
    return 1;
}

static int run_others(struct thing *stream) {
    int ran = 0;
    for (struct thing *t = things; t; t = t->next)
        while (t != stream && t->kind == STREAM && run_one(t)) ran = 1;
    while (stream != &default_stream && run_one(&default_stream)) ran = 1;
    return ran;
}

static unsigned dice(unsigned sides) {
    random_state = random_state * 1664525 + 1013904223;
    return (random_state >> 16) % sides;
}

static struct thing *any_stream(void) {
    int streams = 1;
    for (struct thing *t = things; t; t = t->next) streams += t->kind == STREAM;
    int chosen = dice(streams);
    for (struct thing *t = things; t; t = t->next)
        if (t->kind == STREAM && chosen-- == 0) return t;
    return &default_stream;
}

static void advance(struct thing *stream, long count) {
    while (stream->ran < count && !lost) {
        if (schedule == OTHERS || schedule == AT_ONCE) {
            int moved = run_others(stream);
            if (!run_one(stream) && !moved && !lost) abort(); /* waits are for what came before */
        } else if (schedule == RANDOM)
            run_one(any_stream());
        else if (!run_one(stream))
            advance(stream->first->stream, stream->first->count);
    }
}

static void after_queueing(void) {
    if (schedule == AT_ONCE)
        while (run_others(NULL)) {}
    else if (schedule == RANDOM)
        while (dice(3)) run_one(any_stream());
}

static int advance_all(void) {
    advance(&default_stream, default_stream.queued);
    for (struct thing *t = things; t; t = t->next)
        if (t->kind == STREAM) advance(t, t->queued);
    return lost;
}

static struct op *append(struct thing *queue, struct op op) {
    struct op *copy = malloc(sizeof op);
    *copy = op;
    copy->next = NULL;
    if (queue->last) queue->last->next = copy;
    else queue->first = copy;
    queue->last = copy;
    queue->queued++;
    return copy;
}

static int queue(const char *function, void *handle, struct op op) {
    struct thing *stream = find(STREAM, handle);
    if (!stream) {
        violation("%s: no stream %#lx\n", function, (uint64_t)handle, 0);
        return INVALID_HANDLE;
    }
    append(stream->capture ? stream->capture : stream, op);
    if (!stream->capture) after_queueing();
    return OK;
}

static void drop_queue(struct thing *thing) {
    for (struct op *op = thing->first, *next; op; op = next) {
        next = op->next;
        free(op);
    }
    thing->first = thing->last = NULL;
}

/* Device and context. */

EXPORT int cuInit(unsigned flags) {
    ENTER("cuInit", EVEN_IF_LOST);
    if (!devices) return NO_DEVICE;
    initialized = 1;
    return flags ? INVALID_VALUE : OK;
}

EXPORT int cuDriverGetVersion(int *version) {
    *version = 13000;
    return OK;
}

EXPORT int cuDeviceGetCount(int *count) {
    ENTER("cuDeviceGetCount", 0);
    *count = devices;
    return OK;
}

EXPORT int cuDeviceGet(int *device, int ordinal) {
    ENTER("cuDeviceGet", 0);
    *device = ordinal;
    return ordinal >= 0 && ordinal < devices ? OK : INVALID_DEVICE;
}

EXPORT int cuDeviceGetName(char *name, int length, int device) {
    ENTER("cuDeviceGetName", 0);
    snprintf(name, length, "Fake GPU");
    return device ? INVALID_DEVICE : OK;
}

EXPORT int cuDeviceGetAttribute(int *value, int attribute, int device) {
    ENTER("cuDeviceGetAttribute", 0);
    *value = attribute == 75 ? 8 : attribute == 76 ? 7 : 1;
    return device ? INVALID_DEVICE : OK;
}

EXPORT int cuDeviceComputeCapability(int *major, int *minor, int device) {
    ENTER("cuDeviceComputeCapability", 0);
    *major = 8;
    *minor = 7;
    return device ? INVALID_DEVICE : OK;
}

EXPORT int cuDeviceTotalMem_v2(size_t *bytes, int device) {
    ENTER("cuDeviceTotalMem", 0);
    *bytes = total;
    return device ? INVALID_DEVICE : OK;
}

EXPORT int cuDevicePrimaryCtxRetain(void **context, int device) {
    ENTER("cuDevicePrimaryCtxRetain", 0);
    if (device) return INVALID_DEVICE;
    *context = &a_context;
    retained++;
    return OK;
}

EXPORT int cuDevicePrimaryCtxRelease_v2(int device) {
    ENTER("cuDevicePrimaryCtxRelease", EVEN_IF_LOST);
    if (device || !retained) return INVALID_CONTEXT;
    if (--retained == 0 && lost) /* it goes with all that is in it, which could not be freed */
        for (struct thing *t = things; t; t = t->next)
            if (!t->dead) {
                if (t->kind == ALLOCATION) used -= t->size;
                end(t);
            }
    return OK;
}

EXPORT int cuCtxPushCurrent_v2(void *context) {
    ENTER("cuCtxPushCurrent", EVEN_IF_LOST);
    if (context != &a_context || !retained) return INVALID_CONTEXT;
    depth++;
    return OK;
}

EXPORT int cuCtxPopCurrent_v2(void **context) {
    ENTER("cuCtxPopCurrent", EVEN_IF_LOST);
    if (!depth) return INVALID_CONTEXT;
    if (context) *context = &a_context;
    depth--;
    return OK;
}

EXPORT int cuCtxGetCurrent(void **context) {
    ENTER("cuCtxGetCurrent", EVEN_IF_LOST);
    *context = depth ? &a_context : NULL;
    return OK;
}

EXPORT int cuCtxSetCurrent(void *context) {
    ENTER("cuCtxSetCurrent", EVEN_IF_LOST);
    if (!context) depth -= depth > 0;
    else if (context != &a_context) return INVALID_CONTEXT;
    else if (!depth) depth = 1;
    return OK;
}

EXPORT int cuCtxGetDevice(int *device) {
    ENTER("cuCtxGetDevice", CONTEXT);
    *device = 0;
    return OK;
}

EXPORT int cuCtxGetApiVersion(void *context, unsigned *version) {
    (void)context;
    *version = 3020;
    return OK;
}

EXPORT int cuCtxSynchronize(void) {
    ENTER("cuCtxSynchronize", CONTEXT | NOT_WHILE_CAPTURING);
    return advance_all();
}

/* Memory. */

EXPORT int cuMemGetInfo_v2(size_t *free_bytes, size_t *total_bytes) {
    ENTER("cuMemGetInfo", CONTEXT);
    *free_bytes = total - used;
    *total_bytes = total;
    return OK;
}

EXPORT int cuMemAlloc_v2(uint64_t *address, size_t size) {
    ENTER("cuMemAlloc", CONTEXT | NOT_WHILE_CAPTURING);
    if (!size) return INVALID_VALUE;
    if (size > total - used) return OUT_OF_MEMORY;
    struct thing *t = add(ALLOCATION);
    t->size = size;
    t->bytes = memset(malloc(size), 0xCD, size);
    *address = t->address = next_address;
    next_address += (size + 4096 + 511) / 512 * 512;
    used += size;
    return OK;
}

static int is_named(struct thing *memory) {
    for (struct thing *t = things; t; t = t->next)
        for (struct op *op = t->kind == STREAM && !t->dead ? t->first : NULL; op; op = op->next)
            if (op->what <= FILL && ((op->to >= memory->address &&
                                      op->to < memory->address + memory->size) ||
                                     (op->from >= memory->address &&
                                      op->from < memory->address + memory->size)))
                return 1;
    return 0;
}

static int release(const char *function, enum kind kind, uint64_t address) {
    struct thing *t = holder(kind, address, 1);
    if (!t || t->address != address) {
        violation("%s: nothing was allocated at %#lx, or it was freed before\n", function, address,
                  0);
        return INVALID_VALUE;
    }
    if (is_named(t)) violation("%s: %#lx is freed while work is queued on it\n", function, address, 0);
    end(t);
    if (kind == ALLOCATION) {
        used -= t->size;
        free(t->bytes);
    } else
        memset(t->bytes, 0xDD, t->size); /* and kept, so that a view of it shows what it is */
    return OK;
}

EXPORT int cuMemFree_v2(uint64_t address) {
    ENTER("cuMemFree", CONTEXT | NOT_WHILE_CAPTURING);
    return release("cuMemFree", ALLOCATION, address);
}

static int allocate_host(void **address, size_t size) {
    if (!size) return INVALID_VALUE;
    struct thing *t = add(PINNED);
    t->size = size;
    if (posix_memalign((void **)&t->bytes, 4096, size)) abort();
    memset(t->bytes, 0xCD, size);
    t->address = (uint64_t)(uintptr_t)t->bytes;
    *address = t->bytes;
    return OK;
}

EXPORT int cuMemAllocHost_v2(void **address, size_t size) {
    ENTER("cuMemAllocHost", CONTEXT | NOT_WHILE_CAPTURING);
    return allocate_host(address, size);
}

EXPORT int cuMemHostAlloc(void **address, size_t size, unsigned flags) {
    (void)flags;
    ENTER("cuMemAllocHost", CONTEXT | NOT_WHILE_CAPTURING);
    return allocate_host(address, size);
}

EXPORT int cuMemFreeHost(void *address) {
    ENTER("cuMemFreeHost", CONTEXT | NOT_WHILE_CAPTURING);
    return release("cuMemFreeHost", PINNED, (uint64_t)(uintptr_t)address);
}

static int queue_copy(const char *function, void *stream, struct op op) {
    int needs_to = op.what != COPY_OUT, needs_from = op.what == COPY_ON || op.what == COPY_OUT;
    if ((needs_to && !holder(ALLOCATION, op.to, op.size)) ||
        (needs_from && !holder(ALLOCATION, op.from, op.size))) {
        violation("%s: %#lx and %lu bytes after it are in no allocation of the device\n", function,
                  needs_to ? op.to : op.from, op.size);
        return INVALID_VALUE;
    }
    uint64_t host = op.what == COPY_OUT ? op.to : op.from;
    if ((op.what == COPY_IN || op.what == COPY_OUT) && !holder(PINNED, host, op.size)) {
        violation("%s: %#lx and %lu bytes after it are not page-locked\n", function, host, op.size);
        return INVALID_VALUE;
    }
    return queue(function, stream, op);
}

EXPORT int cuMemcpyHtoDAsync_v2(uint64_t to, const void *from, size_t size, void *stream) {
    ENTER("cuMemcpyHtoDAsync", CONTEXT);
    struct op op = {.what = COPY_IN, .to = to, .from = (uint64_t)(uintptr_t)from, .size = size};
    return queue_copy("cuMemcpyHtoDAsync", stream, op);
}

EXPORT int cuMemcpyDtoHAsync_v2(void *to, uint64_t from, size_t size, void *stream) {
    ENTER("cuMemcpyDtoHAsync", CONTEXT);
    struct op op = {.what = COPY_OUT, .to = (uint64_t)(uintptr_t)to, .from = from, .size = size};
    return queue_copy("cuMemcpyDtoHAsync", stream, op);
}

EXPORT int cuMemcpyDtoDAsync_v2(uint64_t to, uint64_t from, size_t size, void *stream) {
    ENTER("cuMemcpyDtoDAsync", CONTEXT);
    struct op op = {.what = COPY_ON, .to = to, .from = from, .size = size};
    return queue_copy("cuMemcpyDtoDAsync", stream, op);
}

EXPORT int cuMemsetD8Async(uint64_t to, unsigned char value, size_t size, void *stream) {
    ENTER("cuMemsetD8Async", CONTEXT);
    struct op op = {.what = FILL, .to = to, .value = value, .size = size};
    return queue_copy("cuMemsetD8Async", stream, op);
}

EXPORT int cuLaunchHostFunc(void *stream, void (*function)(void *), void *data) {
    ENTER("cuLaunchHostFunc", CONTEXT);
    struct op op = {.what = CALL, .function = function, .data = data};
    return queue("cuLaunchHostFunc", stream, op);
}

/* Streams and events. */

EXPORT int cuStreamCreate(void **stream, unsigned flags) {
    ENTER("cuStreamCreate", CONTEXT);
    if (flags > 1) return INVALID_VALUE;
    *stream = add(STREAM);
    return OK;
}

EXPORT int cuStreamCreateWithPriority(void **stream, unsigned flags, int priority) {
    ENTER("cuStreamCreate", CONTEXT);
    if (flags > 1) return INVALID_VALUE;
    struct thing *made = add(STREAM);
    made->priority = priority > 0 ? 0 : priority < -5 ? -5 : priority;
    *stream = made;
    return OK;
}

EXPORT int cuCtxGetStreamPriorityRange(int *least, int *greatest) {
    ENTER("cuCtxGetStreamPriorityRange", CONTEXT);
    *least = 0;
    *greatest = -5;
    return OK;
}

EXPORT int cuStreamDestroy_v2(void *handle) {
    ENTER("cuStreamDestroy", CONTEXT);
    struct thing *stream = find(STREAM, handle);
    if (!stream || stream == &default_stream) {
        violation("%s: no stream %#lx\n", "cuStreamDestroy", (uint64_t)handle, 0);
        return INVALID_HANDLE;
    }
    if (stream->capture) violation("%s: %#lx is capturing\n", "cuStreamDestroy", (uint64_t)handle, 0);
    advance(stream, stream->queued);
    end(stream);
    return OK;
}

EXPORT int cuStreamSynchronize(void *handle) {
    ENTER("cuStreamSynchronize", CONTEXT | NOT_WHILE_CAPTURING);
    struct thing *stream = find(STREAM, handle);
    if (!stream) return INVALID_HANDLE;
    advance(stream, stream->queued);
    return lost;
}

EXPORT int cuStreamQuery(void *handle) {
    ENTER("cuStreamQuery", CONTEXT | NOT_WHILE_CAPTURING);
    struct thing *stream = find(STREAM, handle);
    if (!stream) return INVALID_HANDLE;
    if (stream->ran == stream->queued) return lost;
    advance(stream, stream->ran + 1);
    return lost ? lost : NOT_READY;
}

EXPORT int cuEventCreate(void **event, unsigned flags) {
    ENTER("cuEventCreate", CONTEXT);
    struct thing *made = add(EVENT);
    made->flags = flags;
    *event = made;
    return OK;
}

static struct thing *event_of(const char *function, void *handle) {
    struct thing *event = find(EVENT, handle);
    if (!event) violation("%s: no event %#lx\n", function, (uint64_t)handle, 0);
    return event;
}

EXPORT int cuEventDestroy_v2(void *handle) {
    ENTER("cuEventDestroy", CONTEXT);
    struct thing *event = event_of("cuEventDestroy", handle);
    if (!event) return INVALID_HANDLE;
    end(event);
    return OK;
}

EXPORT int cuEventRecord(void *handle, void *stream_handle) {
    ENTER("cuEventRecord", CONTEXT);
    struct thing *event = event_of("cuEventRecord", handle);
    struct thing *stream = find(STREAM, stream_handle);
    if (!event || !stream) return INVALID_HANDLE;
    event->captured = stream->capture;
    if (stream->capture) return OK;
    event->where = stream;
    event->count = stream->queued + 1;
    struct op op = {.what = RECORD, .event = event, .count = event->count};
    return queue("cuEventRecord", stream_handle, op);
}

static int is_done(struct thing *event) {
    return !event->where || event->where->ran >= event->count;
}

EXPORT int cuStreamWaitEvent(void *stream_handle, void *handle, unsigned flags) {
    (void)flags;
    ENTER("cuStreamWaitEvent", CONTEXT);
    struct thing *event = event_of("cuStreamWaitEvent", handle);
    struct thing *stream = find(STREAM, stream_handle);
    if (!event || !stream) return INVALID_HANDLE;
    if (event->captured) {
        if (event->captured == stream->capture) return OK;
        violation("%s: the event %#lx was captured; this driver does not spread captures\n",
                  "cuStreamWaitEvent", (uint64_t)handle, 0);
        return NOT_SUPPORTED;
    }
    if (stream->capture) {
        stream->broken = 1;
        return CAPTURE_ISOLATION;
    }
    if (!event->where) return OK;
    struct op op = {.what = WAIT, .stream = event->where, .count = event->count};
    return queue("cuStreamWaitEvent", stream_handle, op);
}

EXPORT int cuEventSynchronize(void *handle) {
    ENTER("cuEventSynchronize", CONTEXT | NOT_WHILE_CAPTURING);
    struct thing *event = event_of("cuEventSynchronize", handle);
    if (!event) return INVALID_HANDLE;
    if (event->captured) return CAPTURED_EVENT;
    if (event->where) advance(event->where, event->count);
    return lost;
}

EXPORT int cuEventQuery(void *handle) {
    ENTER("cuEventQuery", CONTEXT | NOT_WHILE_CAPTURING);
    struct thing *event = event_of("cuEventQuery", handle);
    if (!event) return INVALID_HANDLE;
    if (is_done(event)) return lost;
    advance(event->where, event->where->ran + 1);
    return lost ? lost : NOT_READY;
}

EXPORT int cuEventElapsedTime_v2(float *milliseconds, void *begin_handle, void *end_handle) {
    ENTER("cuEventElapsedTime", CONTEXT);
    struct thing *begin = event_of("cuEventElapsedTime", begin_handle);
    struct thing *finish = event_of("cuEventElapsedTime", end_handle);
    if (!begin || !finish || !begin->where || !finish->where) return INVALID_HANDLE;
    if (!is_done(begin) || !is_done(finish)) return NOT_READY;
    *milliseconds = finish->time - begin->time;
    return OK;
}

/* Graphs: what a stream would have queued. */

EXPORT int cuStreamBeginCapture_v2(void *handle, int mode) {
    (void)mode;
    ENTER("cuStreamBeginCapture", CONTEXT);
    struct thing *stream = find(STREAM, handle);
    if (!stream || stream == &default_stream) return INVALID_HANDLE;
    if (stream->capture) return INVALID_VALUE;
    stream->capture = add(GRAPH);
    stream->capturer = pthread_self();
    stream->broken = 0;
    return OK;
}

EXPORT int cuStreamIsCapturing(void *handle, int *status) {
    ENTER("cuStreamIsCapturing", CONTEXT);
    struct thing *stream = find(STREAM, handle);
    if (!stream) return INVALID_HANDLE;
    *status = !stream->capture ? 0 : stream->broken ? 2 : 1;
    return OK;
}

EXPORT int cuStreamEndCapture(void *handle, void **graph) {
    ENTER("cuStreamEndCapture", CONTEXT);
    struct thing *stream = find(STREAM, handle);
    *graph = NULL;
    if (!stream) return INVALID_HANDLE;
    if (!stream->capture) return INVALID_VALUE;
    struct thing *captured = stream->capture;
    stream->capture = NULL;
    if (stream->broken) {
        drop_queue(captured);
        end(captured);
        return CAPTURE_INVALIDATED;
    }
    *graph = captured;
    return OK;
}

EXPORT int cuGraphInstantiateWithFlags(void **executable, void *handle, unsigned long long flags) {
    (void)flags;
    ENTER("cuGraphInstantiate", CONTEXT);
    struct thing *graph = find(GRAPH, handle);
    if (!graph) return INVALID_VALUE;
    struct thing *made = add(EXECUTABLE);
    for (struct op *op = graph->first; op; op = op->next) append(made, *op);
    *executable = made;
    return OK;
}

EXPORT int cuGraphDestroy(void *handle) {
    ENTER("cuGraphDestroy", CONTEXT);
    struct thing *graph = find(GRAPH, handle);
    if (!graph) return INVALID_VALUE;
    drop_queue(graph);
    end(graph);
    return OK;
}

EXPORT int cuGraphExecDestroy(void *handle) {
    ENTER("cuGraphExecDestroy", CONTEXT);
    struct thing *executable = find(EXECUTABLE, handle);
    if (!executable) return INVALID_VALUE;
    drop_queue(executable);
    end(executable);
    return OK;
}

EXPORT int cuGraphLaunch(void *handle, void *stream_handle) {
    ENTER("cuGraphLaunch", CONTEXT);
    struct thing *executable = find(EXECUTABLE, handle);
    struct thing *stream = find(STREAM, stream_handle);
    if (!executable || !stream) return INVALID_HANDLE;
    struct thing *target = stream->capture ? stream->capture : stream;
    for (struct op *op = executable->first; op; op = op->next) append(target, *op);
    if (!stream->capture) after_queueing();
    return OK;
}

/* Errors and finding functions. */

EXPORT int cuGetErrorName(int error, const char **name) {
    *name = NULL;
    for (size_t i = 0; i < COUNT(errors); i++)
        if (errors[i].code == error) *name = errors[i].name;
    return *name ? OK : INVALID_VALUE;
}

EXPORT int cuGetErrorString(int error, const char **text) {
    *text = NULL;
    for (size_t i = 0; i < COUNT(errors); i++)
        if (errors[i].code == error) *text = errors[i].text;
    return *text ? OK : INVALID_VALUE;
}

EXPORT int cuGetProcAddress_v2(const char *, void **, int, uint64_t, int *);
EXPORT int cuGetProcAddress(const char *, void **, int, uint64_t);

/* By the name without its version, and the CUDA versions whose signature it has. */
static const struct { const char *name; void *function; int since, until; } functions[] = {
#define F(name, function, since, until) {#name, (void *)function, since, until},
    F(cuInit, cuInit, 0, 99999)
    F(cuDriverGetVersion, cuDriverGetVersion, 0, 99999)
    F(cuDeviceGetCount, cuDeviceGetCount, 0, 99999)
    F(cuDeviceGet, cuDeviceGet, 0, 99999)
    F(cuDeviceGetName, cuDeviceGetName, 0, 99999)
    F(cuDeviceGetAttribute, cuDeviceGetAttribute, 0, 99999)
    F(cuDeviceTotalMem, cuDeviceTotalMem_v2, 3020, 99999)
    F(cuDevicePrimaryCtxRetain, cuDevicePrimaryCtxRetain, 0, 99999)
    F(cuDevicePrimaryCtxRelease, cuDevicePrimaryCtxRelease_v2, 0, 99999)
    F(cuCtxPushCurrent, cuCtxPushCurrent_v2, 4000, 99999)
    F(cuCtxPopCurrent, cuCtxPopCurrent_v2, 4000, 99999)
    F(cuCtxGetCurrent, cuCtxGetCurrent, 0, 99999)
    F(cuCtxSetCurrent, cuCtxSetCurrent, 0, 99999)
    F(cuCtxGetDevice, cuCtxGetDevice, 0, 12999)
    F(cuCtxGetApiVersion, cuCtxGetApiVersion, 0, 99999)
    F(cuCtxSynchronize, cuCtxSynchronize, 0, 12999)
    F(cuMemGetInfo, cuMemGetInfo_v2, 3020, 99999)
    F(cuMemAlloc, cuMemAlloc_v2, 3020, 99999)
    F(cuMemFree, cuMemFree_v2, 3020, 99999)
    F(cuMemAllocHost, cuMemAllocHost_v2, 3020, 99999)
    F(cuMemHostAlloc, cuMemHostAlloc, 0, 99999)
    F(cuMemFreeHost, cuMemFreeHost, 0, 99999)
    F(cuMemcpyHtoDAsync, cuMemcpyHtoDAsync_v2, 3020, 99999)
    F(cuMemcpyDtoHAsync, cuMemcpyDtoHAsync_v2, 3020, 99999)
    F(cuMemcpyDtoDAsync, cuMemcpyDtoDAsync_v2, 3020, 99999)
    F(cuMemsetD8Async, cuMemsetD8Async, 3020, 99999)
    F(cuLaunchHostFunc, cuLaunchHostFunc, 0, 99999)
    F(cuStreamCreate, cuStreamCreate, 0, 99999)
    F(cuStreamCreateWithPriority, cuStreamCreateWithPriority, 5050, 99999)
    F(cuCtxGetStreamPriorityRange, cuCtxGetStreamPriorityRange, 5050, 99999)
    F(cuStreamDestroy, cuStreamDestroy_v2, 4000, 99999)
    F(cuStreamSynchronize, cuStreamSynchronize, 0, 99999)
    F(cuStreamQuery, cuStreamQuery, 0, 99999)
    F(cuStreamWaitEvent, cuStreamWaitEvent, 0, 99999)
    F(cuStreamBeginCapture, cuStreamBeginCapture_v2, 10010, 99999)
    F(cuStreamIsCapturing, cuStreamIsCapturing, 0, 99999)
    F(cuStreamEndCapture, cuStreamEndCapture, 0, 99999)
    F(cuEventCreate, cuEventCreate, 0, 99999)
    F(cuEventDestroy, cuEventDestroy_v2, 4000, 99999)
    F(cuEventRecord, cuEventRecord, 0, 99999)
    F(cuEventSynchronize, cuEventSynchronize, 0, 99999)
    F(cuEventQuery, cuEventQuery, 0, 99999)
    F(cuEventElapsedTime, cuEventElapsedTime_v2, 0, 99999)
    F(cuGraphInstantiate, cuGraphInstantiateWithFlags, 12000, 99999)
    F(cuGraphInstantiateWithFlags, cuGraphInstantiateWithFlags, 11040, 99999)
    F(cuGraphLaunch, cuGraphLaunch, 0, 99999)
    F(cuGraphDestroy, cuGraphDestroy, 0, 99999)
    F(cuGraphExecDestroy, cuGraphExecDestroy, 0, 99999)
    F(cuGetErrorName, cuGetErrorName, 0, 99999)
    F(cuGetErrorString, cuGetErrorString, 0, 99999)
    F(cuGetProcAddress, cuGetProcAddress_v2, 12000, 99999)
};

EXPORT int cuGetProcAddress_v2(const char *name, void **function, int version, uint64_t flags,
                               int *status) {
    (void)flags;
    *function = NULL;
    for (size_t i = 0; i < COUNT(functions); i++)
        if (!strcmp(functions[i].name, name) && version >= functions[i].since &&
            version <= functions[i].until)
            *function = functions[i].function;
    if (status) *status = *function ? 0 : 1;
    return *function ? OK : NOT_FOUND;
}

EXPORT int cuGetProcAddress(const char *name, void **function, int version, uint64_t flags) {
    return cuGetProcAddress_v2(name, function, version, flags, NULL);
}

/* pycuda links these names and calls none of them here. */
#define X(name) \
    EXPORT int name(void) { return NOT_SUPPORTED; }
X(cuArray3DCreate_v2) X(cuArray3DGetDescriptor_v2) X(cuArrayCreate_v2) X(cuArrayDestroy)
X(cuArrayGetDescriptor_v2) X(cuCtxAttach) X(cuCtxCreate_v4) X(cuCtxDetach)
X(cuCtxDisablePeerAccess) X(cuCtxEnablePeerAccess) X(cuCtxGetCacheConfig) X(cuCtxGetLimit)
X(cuCtxGetSharedMemConfig) X(cuCtxSetCacheConfig) X(cuCtxSetLimit)
X(cuCtxSetSharedMemConfig) X(cuDeviceCanAccessPeer) X(cuDeviceGetByPCIBusId)
X(cuDeviceGetPCIBusId) X(cuFuncGetAttribute) X(cuFuncSetAttribute) X(cuFuncSetBlockShape)
X(cuFuncSetCacheConfig) X(cuFuncSetSharedSize) X(cuIpcCloseMemHandle) X(cuIpcGetEventHandle)
X(cuIpcGetMemHandle) X(cuIpcOpenEventHandle) X(cuIpcOpenMemHandle_v2) X(cuLaunch)
X(cuLaunchGrid) X(cuLaunchGridAsync) X(cuLaunchKernel) X(cuLinkAddData_v2)
X(cuLinkAddFile_v2) X(cuLinkComplete) X(cuLinkCreate_v2) X(cuLinkDestroy)
X(cuMemAllocManaged) X(cuMemAllocPitch_v2) X(cuMemGetAddressRange_v2)
X(cuMemHostGetDevicePointer_v2) X(cuMemHostGetFlags) X(cuMemHostRegister_v2)
X(cuMemHostUnregister) X(cuMemcpy2DAsync_v2) X(cuMemcpy2DUnaligned_v2) X(cuMemcpy2D_v2)
X(cuMemcpy3DAsync_v2) X(cuMemcpy3DPeer) X(cuMemcpy3DPeerAsync) X(cuMemcpy3D_v2)
X(cuMemcpyAtoA_v2) X(cuMemcpyAtoD_v2) X(cuMemcpyAtoH_v2) X(cuMemcpyDtoA_v2)
X(cuMemcpyDtoD_v2) X(cuMemcpyDtoH_v2) X(cuMemcpyHtoA_v2) X(cuMemcpyHtoD_v2) X(cuMemcpyPeer)
X(cuMemcpyPeerAsync) X(cuMemsetD16Async) X(cuMemsetD16_v2) X(cuMemsetD2D16Async)
X(cuMemsetD2D16_v2) X(cuMemsetD2D32Async) X(cuMemsetD2D32_v2) X(cuMemsetD2D8Async)
X(cuMemsetD2D8_v2) X(cuMemsetD32Async) X(cuMemsetD32_v2) X(cuMemsetD8_v2)
X(cuModuleGetFunction) X(cuModuleGetGlobal_v2) X(cuModuleGetSurfRef) X(cuModuleGetTexRef)
X(cuModuleLoad) X(cuModuleLoadData) X(cuModuleLoadDataEx) X(cuModuleUnload)
X(cuParamSetSize) X(cuParamSetTexRef) X(cuParamSetf) X(cuParamSeti) X(cuParamSetv)
X(cuProfilerInitialize) X(cuProfilerStart) X(cuProfilerStop) X(cuStreamAttachMemAsync)
X(cuSurfRefGetArray) X(cuSurfRefSetArray) X(cuTexRefCreate) X(cuTexRefDestroy)
X(cuTexRefGetAddressMode) X(cuTexRefGetAddress_v2) X(cuTexRefGetArray)
X(cuTexRefGetFilterMode) X(cuTexRefGetFlags) X(cuTexRefGetFormat) X(cuTexRefSetAddress2D_v3)
X(cuTexRefSetAddressMode) X(cuTexRefSetAddress_v2) X(cuTexRefSetArray)
X(cuTexRefSetFilterMode) X(cuTexRefSetFlags) X(cuTexRefSetFormat)
#undef X

/* For tests. */

/* How many live: a kind of thing, `context` for retained ones, `pushed` for this thread's stack. */
EXPORT int fake_cuda_live(const char *name) {
    if (!strcmp(name, "context")) return retained;
    if (!strcmp(name, "pushed")) return depth;
    for (int kind = 0; kind < KINDS; kind++)
        if (!strcmp(name, kind_names[kind])) return live[kind];
    return -1;
}

/* How many of a kind live with these flags (of events) and this priority (of streams). */
EXPORT int fake_cuda_made(const char *name, int flags, int priority) {
    int found = 0;
    for (struct thing *t = things; t; t = t->next)
        found += !t->dead && !strcmp(name, kind_names[t->kind]) && t->flags == flags &&
                 t->priority == priority;
    return found;
}

/* Let a later call of a function fail, or `work` on the device; `skip` calls pass before it. */
EXPORT void fake_cuda_fail_next(const char *function, int error, int skip) {
    for (size_t i = 0; i < COUNT(planned); i++)
        if (!planned[i].error) {
            snprintf(planned[i].name, sizeof planned[i].name, "%s", function);
            planned[i].error = error;
            planned[i].skip = skip;
            return;
        }
    abort();
}

EXPORT long fake_cuda_calls(const char *function) {
    for (size_t i = 0; i < COUNT(calls) && calls[i].name; i++)
        if (!strcmp(calls[i].name, function)) return calls[i].calls;
    return 0;
}

EXPORT const char *fake_cuda_violations(void) { return violations; }
EXPORT void fake_cuda_set_memory(size_t bytes) { total = bytes; }
EXPORT void fake_cuda_set_devices(int number) { devices = number; initialized = 0; }
EXPORT void fake_cuda_set_schedule(int which, unsigned seed) { schedule = which; random_state = seed; }

/* Where host functions find device memory; NULL is a violation and loses the context. */
EXPORT void *fake_cuda_bytes(uint64_t address, size_t size) {
    void *bytes = device_bytes(address, size);
    if (!bytes) {
        violation("%s: %#lx and %lu bytes after it are in no allocation\n", "kernel", address, size);
        lost = ILLEGAL_ADDRESS;
    }
    return bytes;
}

EXPORT void fake_cuda_lose(int error) { lost = error; }

/* As if the process had just begun. */
EXPORT void fake_cuda_reset(void) {
    for (struct thing *t = things, *next; t; t = next) {
        next = t->next;
        drop_queue(t);
        if (!t->dead && t->kind == ALLOCATION) free(t->bytes);
        if (t->kind != PINNED) free(t); /* numpy may still look at it */
    }
    drop_queue(&default_stream);
    things = NULL;
    memset(live, 0, sizeof live);
    memset(calls, 0, sizeof calls);
    memset(planned, 0, sizeof planned);
    memset(&default_stream, 0, sizeof default_stream);
    default_stream.kind = STREAM;
    initialized = retained = lost = depth = 0;
    schedule = LATE;
    devices = 1;
    used = 0;
    total = (size_t)1 << 30;
    violations[0] = 0;
}
