/* A stand-in for librkllmrt.so, for tests on machines without an NPU.
 *
 * It takes the runtime's calls, checks every struct that it receives byte for byte, and records what it saw as lines
 * of JSON in the file that STANDIN_RECORD names. Its model has one token per byte (id = byte + 3; 1 ends, 2
 * begins), and the next token after a text is a pure function of that text: it answers with what stands between the
 * last "[[" and "]]" of the text, or else with the script's answer, and then ends.
 *
 * The script is in the model's file after a line "#standin", in STANDIN_SCRIPT, or both: words KEY=VALUE, parted by
 * line ends or ";". Times are microseconds per token. See `keys` below for all of them. */
#define _GNU_SOURCE
#include "abi.h"

#include <errno.h>
#include <fcntl.h>
#include <math.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

enum { FIRST_BYTE = 3, END = 1, BEGIN = 2, VOCABULARY = 320, EMBEDDING = 16, LONGEST = 1 << 15 };

/* known(guess): the library holds "RKLLM SDK (version: ..."; others search for it, no address */
__attribute__((used)) static const char banner[] =
    "RKLLM SDK (version: " VERSION " | target: Linux | build: stand-in)";

typedef struct {
    char answer[4096];  /* what it says where the text asks for nothing else */
    char fail[64];      /* how rkllm_init fails: a key of `failures`, "silent", "null" or "segfault" */
    char waiting[16];   /* what a half character's callback holds: "null" or "bytes" */
    char platform[32];
    char prints[16];    /* "matmul" or "submit": an error that it prints in every answer, as below */
    long prefill_us, decode_us, load_ms;
    long limit;         /* the model's context */
    long crash_after, hang_after, error_after; /* tokens of one answer; -1 never */
    long endless;       /* 1: never ends by itself, as with a wrong end token */
    long abort_finish;  /* 1: an aborted run still gives its FINISH */
    long once;          /* 1: a second rkllm_init of this process crashes */
    long prefill_all;   /* 1: no prefix is ever used again */
    long sticky;        /* 1: an abort that no run takes notice of ends the next one */
} Script;

static const struct {
    const char *name;
    size_t offset;
    size_t length; /* 0 for a number */
} keys[] = {
#define TEXT(key) {#key, offsetof(Script, key), sizeof(((Script *)0)->key)}
#define NUMBER(key) {#key, offsetof(Script, key), 0}
    TEXT(answer),         TEXT(fail),          TEXT(waiting),       TEXT(platform),      TEXT(prints),
    NUMBER(prefill_us),   NUMBER(decode_us),   NUMBER(load_ms),      NUMBER(limit),     NUMBER(crash_after),
    NUMBER(hang_after),   NUMBER(error_after), NUMBER(endless),      NUMBER(abort_finish), NUMBER(once),
    NUMBER(prefill_all),  NUMBER(sticky),
};

/* known(report): airockchip/rknn-llm#416: "Platform error, must be ... Your platform is lite" on an RK3566 */
/* known(report): airockchip/rknn-llm#530: "Your platform is unknown" */
/* known(log): airockchip/rknn-llm#129: "invalid rknn llm model magic" and "load model file error!" */
/* known(log): radxa-docs/docs#881: the lines of "driver" */
/* known(log): airockchip/rknn-llm#335: the lines of "memory" */
/* known(log): airockchip/rknn-llm#62: the lines of "files" */
/* known(log): airockchip/rknn-llm#68: the lines of "weight" */
/* known(guess): "target", "runtime", "old": strings of 1.2.x that others list, no address */
/* known(guess): "prompt", "context", "keep", "image": strings of 1.2.x that others list, no address */
/* known(report): av1d/rk3588_npu_llm_server#2: 1.0.1 has other words for "target" and "old" */
/* known(guess): a load that fails prints its reason and returns -1 */
/* Whole lines of the runtime and of librknnrt: strings published for 1.2.x, and users' reports, times included. */
static const struct {
    const char *name, *text;
} failures[] = {
    {"platform", "E rkllm: Platform error, must be either RK3588, RK3576, RV1126B or RK3562. Your platform is lite"},
    {"unknown", "E rkllm: Platform error, must be either RK3588, RK3576, RV1126B or RK3562. Your platform is unknown"},
    {"target", "E rkllm: the model's target_platform does not match the real platform"},
    {"runtime", "E rkllm: The rkllm-runtime version is lower than the rkllm-toolkit version, please upgrade the runtime"},
    {"old", "E rkllm: the model version is too old, please reconvert the model"},
    {"magic", "E RKNN: [11:51:52.906] invalid rknn llm model magic\n"
              "E RKNN: [11:51:52.906] load model file error!"},
    {"driver", "E RKNN: [12:35:17.433] failed to open rknpu module, need to insmod rknpu dirver!\n"
               "E RKNN: [12:35:17.433] failed to open rknn device!\nE RKNN: [12:35:17.533] Device is not available\n"
               "Get device properties failed"},
    {"memory", "E RKNN: [09:40:45.140] failed to allocate handle, ret: -1, errno: 14, errstr: Bad address\n"
               "E RKNN: [09:40:45.140] failed to malloc npu memory, size: 3085697024, flags: 0x2\n"
               "E RKNN: [09:40:45.148] load model file error!\nE rkllm: rkllm_init failed"},
    {"files", "E RKNN: [10:49:05.216] failed to convert handle(1020) to fd, ret: -1, errno: 24, errstr: Too many open "
              "files\nE RKNN: [10:49:05.216] failed to malloc npu memory, size: 80, flags: 0xa"},
    {"prompt", "E rkllm: length of prompt is greater than max context"},
    {"context", "E rkllm: context is not enough"},
    {"keep", "E rkllm: n_keep must be less than max_context_len"},
    {"image", "E rkllm: multimodal input must contain the <image> tag"},
    {"weight", "E RKNN: [15:47:03.156] failed to allocate handle, ret: -1, errno: 14, errstr: Bad address\n"
               "can not create weight memory for domain1\nError: iommu_context->weight_memory is NULL"},
};

typedef struct {
    Script script;
    Param param;
    ResultCallback callback;
    void *userdata;
    int32_t cache[LONGEST]; /* the tokens whose keys and values are there */
    int cached;
    char lora[64];
    char system[512], prefix[512], postfix[512];
    atomic_int loading, running, aborted;
} Model;

static atomic_int inits;

/* -- the record */

static pthread_mutex_t record_lock = PTHREAD_MUTEX_INITIALIZER;

static void record(const char *format, ...) {
    const char *path = getenv("STANDIN_RECORD");
    if (!path) return;
    char line[8192];
    va_list arguments;
    va_start(arguments, format);
    int length = vsnprintf(line, sizeof line - 1, format, arguments);
    va_end(arguments);
    if (length >= (int)sizeof line - 1) length = (int)sizeof line - 2;
    line[length++] = '\n';
    pthread_mutex_lock(&record_lock);
    int file = open(path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
    if (file < 0 || write(file, line, length) != length) perror("stand-in: record");
    if (file >= 0) close(file);
    pthread_mutex_unlock(&record_lock);
}

static int violated(const char *what) {
    record("{\"violation\": \"%s\"}", what);
    fprintf(stderr, "stand-in: violation: %s\n", what);
    return -1;
}

/* Whether the bytes may be read: the kernel says so when it is asked to write them into a pipe. */
static bool readable(const void *start, size_t size) {
    if (!start) return false;
    int ends[2];
    if (pipe2(ends, O_CLOEXEC | O_NONBLOCK)) return false;
    bool good = true;
    char taken;
    for (size_t at = 0; good && at < size; at = at + 4096 < size || at + 1 >= size ? at + 4096 : size - 1)
        good = write(ends[1], (const char *)start + at, 1) == 1 && read(ends[0], &taken, 1) == 1;
    close(ends[0]);
    close(ends[1]);
    return good;
}

static bool is_text(const char *text, size_t longest) {
    return readable(text, 1) && strnlen(text, longest) < longest;
}

static bool between(double value, double low, double high) { return value >= low && value <= high; }

/* -- the script */

static void set_key(Script *script, const char *word) {
    const char *equals = strchr(word, '=');
    if (!equals) return;
    for (size_t each = 0; each < sizeof keys / sizeof *keys; each++) {
        if (strlen(keys[each].name) != (size_t)(equals - word) || strncmp(word, keys[each].name, equals - word)) continue;
        char *place = (char *)script + keys[each].offset;
        if (keys[each].length)
            snprintf(place, keys[each].length, "%s", equals + 1);
        else
            *(long *)place = strtol(equals + 1, NULL, 10);
        return;
    }
    fprintf(stderr, "stand-in: unknown key in the script: %s\n", word);
    exit(97);
}

static void read_words(Script *script, const char *text) {
    char *copy = strdup(text), *rest = copy, *word;
    while ((word = strsep(&rest, "\n;"))) set_key(script, word);
    free(copy);
}

static bool read_script(Script *script, const char *path) {
    *script = (Script){.waiting = "null", .platform = "RK3588", .answer = "Two stones and a third.",
                       .limit = 4096, .crash_after = -1, .hang_after = -1, .error_after = -1, .abort_finish = 1};
    FILE *file = fopen(path, "rbe");
    if (!file) return false;
    static char content[1 << 20];
    size_t length = fread(content, 1, sizeof content - 1, file);
    fclose(file);
    content[length] = 0;
    char *mark = memmem(content, length, "#standin\n", 9);
    if (mark) read_words(script, mark + 9);
    if (getenv("STANDIN_SCRIPT")) read_words(script, getenv("STANDIN_SCRIPT"));
    return true;
}

static int complain(const char *kind) {
    for (size_t each = 0; each < sizeof failures / sizeof *failures; each++)
        if (!strcmp(kind, failures[each].name)) fprintf(stderr, "%s\n", failures[each].text);
    return -1;
}

/* -- time */

static double now_ms(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec * 1e3 + now.tv_nsec / 1e6;
}

static void rest(long microseconds) {
    struct timespec time = {microseconds / 1000000, microseconds % 1000000 * 1000};
    while (nanosleep(&time, &time) && errno == EINTR) {
    }
}

/* -- the model */

static uint64_t mix(uint64_t value) {
    value ^= value >> 31;
    value *= 0x9e3779b97f4a7c15u;
    return value ^ value >> 29;
}

static int to_tokens(const char *text, int32_t *tokens, int length) {
    for (; *text && length < LONGEST; text++) tokens[length++] = (unsigned char)*text + FIRST_BYTE;
    return length;
}

static int last_pair(const int32_t *tokens, int length, int byte, int before) {
    for (int at = (before < length ? before : length) - 2; at >= 0; at--)
        if (tokens[at] == byte + FIRST_BYTE && tokens[at + 1] == byte + FIRST_BYTE) return at;
    return -1;
}

/* The token that follows: the answer goes on from its longest beginning that the text ends with. */
static int32_t next_token(const Script *script, const int32_t *tokens, int length) {
    int32_t written[4096];
    const int32_t *answer = written;
    int size = 0, close = last_pair(tokens, length, ']', length);
    int open = close < 0 ? -1 : last_pair(tokens, length, '[', close);
    if (open >= 0) {
        answer = tokens + open + 2;
        size = close - open - 2;
    } else {
        for (const char *at = script->answer; *at && size < 4096; at++) written[size++] = (unsigned char)*at + FIRST_BYTE;
    }
    int most = open >= 0 && length - close - 2 < size ? length - close - 2 : size;
    for (int said = most < length ? most : length; said >= 0; said--)
        if (!memcmp(tokens + length - said, answer, said * sizeof *tokens)) return said < size ? answer[said] : END;
    return END;
}

#if STANDIN_ABI >= 120
static void fill_logits(const Script *script, const int32_t *tokens, int length, float *logits) {
    uint64_t hash = 7;
    for (int at = 0; at < length; at++) hash = mix(hash ^ (uint64_t)tokens[at]);
    for (int token = 0; token < VOCABULARY; token++) logits[token] = (float)(mix(hash + token) % 1000) / 250.0f;
    logits[next_token(script, tokens, length)] = 12.0f;
}
#endif

static void fill_hidden(const int32_t *tokens, int length, float *states) {
    uint64_t hash = 11;
    for (int at = 0; at < length; at++) {
        hash = mix(hash ^ (uint64_t)tokens[at]);
        for (int each = 0; each < EMBEDDING; each++)
            states[at * EMBEDDING + each] = (float)(mix(hash + each) % 2001) / 1000.0f - 1.0f;
    }
}

/* -- checks */

/* known(source): rknpu 0.9.8: 16 IOMMU domains */
/* known(header): rkllm.h 1.2.0: eight CPUs have a bit in enabled_cpus_mask */
/* known(guess): enabled_cpus_num has to be the number of bits in enabled_cpus_mask */
/* known(guess): reserved bytes of RKLLMExtendParam have to be zero */
static int check_extend(const ExtendParam *extend) {
    for (size_t at = 0; at < sizeof extend->reserved; at++)
        if (extend->reserved[at]) return violated("reserved bytes of ExtendParam are not zero");
    if (!between(extend->base_domain_id, 0, 15)) return violated("base_domain_id is none of 0 to 15");
#if STANDIN_ABI >= 120
    if (!between(extend->embed_flash, 0, 1)) return violated("embed_flash is neither 0 nor 1");
    if (!between(extend->enabled_cpus_num, 1, 8)) return violated("enabled_cpus_num is none of 1 to 8");
    if (__builtin_popcount(extend->enabled_cpus_mask) != extend->enabled_cpus_num)
        return violated("enabled_cpus_mask and enabled_cpus_num do not agree");
#endif
#if STANDIN_ABI >= 121
    if (extend->n_batch != 1) return violated("n_batch is not 1");
    if (extend->use_cross_attn) return violated("use_cross_attn is set");
#endif
    return 0;
}

/* known(guess): ranges of the sampling parameters; they hold Trilithon to sensible values, the runtime's are unknown */
static int check_sampling(int top_k, double top_p, double temperature, double repeat, double frequency,
                          double presence, int mirostat, double tau, double eta) {
    if (!between(top_k, 1, 100000)) return violated("top_k is no number of tokens");
    if (!between(top_p, 0, 1)) return violated("top_p is not from 0 to 1");
    if (!between(temperature, 0.001, 10)) return violated("temperature is not from 0.001 to 10");
    if (!between(repeat, 0.1, 10)) return violated("repeat_penalty is not from 0.1 to 10");
    if (!between(frequency, -2, 2)) return violated("frequency_penalty is not from -2 to 2");
    if (!between(presence, -2, 2)) return violated("presence_penalty is not from -2 to 2");
    if (!between(mirostat, 0, 2)) return violated("mirostat is none of 0, 1, 2");
    if (!between(tau, 0.01, 100) || !between(eta, 0.001, 10)) return violated("mirostat's tau or eta is out of range");
    return 0;
}

/* known(guess): max_context_len is a multiple of 32, up to 16384; noted without an address */
static int check_param(const Param *param) {
    if (!readable(param, sizeof *param)) return violated("RKLLMParam cannot be read");
    if (!is_text(param->model_path, 4096)) return violated("model_path is no text");
    if (!between(param->max_context_len, 32, 16384) || param->max_context_len % 32)
        return violated("max_context_len is no multiple of 32 up to 16384");
    if (!between(param->max_new_tokens, -1, 16384)) return violated("max_new_tokens is out of range");
#if STANDIN_ABI >= 120
    if (!between(param->n_keep, -1, param->max_context_len - 1)) return violated("n_keep is out of range");
#endif
    const unsigned char *bytes = (const unsigned char *)param;
    for (size_t at = offsetof(Param, skip_special_token); at <= offsetof(Param, is_async); at++)
        if (bytes[at] > 1) return violated("a bool of RKLLMParam is neither 0 nor 1");
    if (param->is_async) return violated("is_async is set");
#if STANDIN_ABI < 130
    const char *marks[] = {param->img_start, param->img_end, param->img_content};
    for (int each = 0; each < 3; each++)
        if (!is_text(marks[each], 64)) return violated("an image mark is no text");
#endif
    if (check_sampling(param->top_k, param->top_p, param->temperature, param->repeat_penalty,
                       param->frequency_penalty, param->presence_penalty, param->mirostat, param->mirostat_tau,
                       param->mirostat_eta))
        return -1;
    return check_extend(&param->extend_param);
}

static int check_tokens(const TokenInput *input) {
    if (!input->n_tokens || input->n_tokens > LONGEST) return violated("n_tokens is out of range");
    if (!readable(input->input_ids, input->n_tokens * sizeof(int32_t))) return violated("input_ids cannot be read");
    for (size_t at = 0; at < input->n_tokens; at++)
        if (!between(input->input_ids[at], 0, VOCABULARY - 1)) return violated("a token id is not in the vocabulary");
    return 0;
}

/* known(guess): a prompt beside an image needs the tag <image>: strings of 1.2.x that others list, no address */
/* known(header): rkllm.h 1.3.0: sizes, marks and number of the images of a request */
static int check_image(const MultiModalInput *input) {
    if (!is_text(input->prompt, LONGEST)) return violated("the prompt beside the image is no text");
    if (!strstr(input->prompt, "<image>")) return complain("image");
#if STANDIN_ABI >= 130
    if (!between(input->image.n_image, 1, 16) || !between(input->image.n_image_tokens, 1, 4096))
        return violated("n_image or n_image_tokens is out of range");
    size_t floats = input->image.n_image * input->image.n_image_tokens * EMBEDDING;
    if (!readable(input->image.image_embed, floats * sizeof(float))) return violated("image_embed cannot be read");
    if (!is_text(input->image.image_start, 64) || !is_text(input->image.image_end, 64) ||
        !is_text(input->image.image_content, 64))
        return violated("an image mark is no text");
    const char *video = (const char *)&input->video;
    for (size_t at = 0; at < sizeof input->video; at++)
        if (video[at]) return violated("video is not empty");
#else
    if (!between(input->n_image_tokens, 1, 4096)) return violated("n_image_tokens is out of range");
    if (!readable(input->image_embed, input->n_image_tokens * EMBEDDING * sizeof(float)))
        return violated("image_embed cannot be read");
#endif
    return 0;
}

/* known(guess): roles of an input are user and tool; noted without an address */
static int check_input(const Input *input) {
    if (!readable(input, sizeof *input)) return violated("RKLLMInput cannot be read");
#if STANDIN_ABI >= 121
    if (!is_text(input->role, 16) || (strcmp(input->role, "user") && strcmp(input->role, "tool")))
        return violated("role is neither user nor tool");
    if (((const unsigned char *)input)[offsetof(Input, enable_thinking)] > 1)
        return violated("enable_thinking is neither 0 nor 1");
    for (size_t at = offsetof(Input, enable_thinking) + 1; at < offsetof(Input, input_type); at++)
        if (((const char *)input)[at]) return violated("padding of RKLLMInput is not zero");
#endif
    if (input->input_type == INPUT_PROMPT)
        return is_text(input->data.prompt, LONGEST) ? 0 : violated("the prompt is no text");
    if (input->input_type == INPUT_TOKEN) return check_tokens(&input->data.token);
    if (input->input_type == INPUT_MULTIMODAL) return check_image(&input->data.multimodal);
    return violated("input_type is not one that is used");
}

/* known(report): airockchip/rknn-llm#432: keep_history 0 with the whole list of tokens is the maintainer's advice */
/* known(guess): a LoRA adapter has to be loaded before a run names it */
/* known(guess): how the runtime takes keep_history, batches and cross attention; the stand-in refuses them */
static int check_infer(const InferParam *infer, const Model *model) {
    if (!readable(infer, sizeof *infer)) return violated("RKLLMInferParam cannot be read");
    if (!between(infer->mode, 0, STANDIN_ABI >= 120 ? 2 : 1)) return violated("mode is not known");
    if (infer->lora_params) {
        if (!readable(infer->lora_params, sizeof(LoraParam)) || !is_text(infer->lora_params->name, 64))
            return violated("lora_params is not readable");
        if (strcmp(infer->lora_params->name, model->lora)) return violated("the LoRA adapter is not loaded");
    }
    const PromptCacheParam *cache = infer->prompt_cache_params;
    if (cache && (!readable(cache, sizeof *cache) || !between(cache->save_prompt_cache, 0, 1)))
        return violated("prompt_cache_params is not readable");
    if (cache && cache->save_prompt_cache && !is_text(cache->path, 4096)) return violated("the cache's path is no text");
#if STANDIN_ABI >= 120
    if (infer->keep_history) return violated("keep_history is set");
#endif
#if STANDIN_ABI >= 130
    const SamplingParam *sampling = infer->sampling_params;
    if (!between(infer->max_new_tokens, -1, 16384)) return violated("max_new_tokens of a run is out of range");
    if (!sampling) return 0;
    if (!readable(sampling, sizeof *sampling)) return violated("sampling_params is not readable");
    return check_sampling(sampling->top_k, sampling->top_p, sampling->temperature, sampling->repeat_penalty,
                          sampling->frequency_penalty, sampling->presence_penalty, sampling->mirostat,
                          sampling->mirostat_tau, sampling->mirostat_eta);
#else
    return 0;
#endif
}

/* -- the interface: loading */

/* known(documentation): RKLLM SDK guide 1.3.0: defaults of top_k, top_p, temperature, the penalties and mirostat */
/* known(guess): other defaults of rkllm_createDefaultParam: strings of 1.2.x that others list, no address */
Param rkllm_createDefaultParam(void) {
    Param param;
    memset(&param, 0, sizeof param);
#if STANDIN_SHIFT == AT_END
    memset(param.new_fields, 0xa5, sizeof param.new_fields);
#endif
    param.max_context_len = 512;
    param.max_new_tokens = -1;
    param.top_k = 40;
    param.top_p = 0.9f;
    param.temperature = 0.8f;
    param.repeat_penalty = 1.1f;
    param.mirostat_tau = 5.0f;
    param.mirostat_eta = 0.1f;
    param.skip_special_token = true;
#if STANDIN_ABI < 130
    param.img_start = param.img_end = param.img_content = "";
#endif
#if STANDIN_ABI >= 120
    param.n_keep = -1;
    param.extend_param.embed_flash = 1;
    param.extend_param.enabled_cpus_num = 4;
    param.extend_param.enabled_cpus_mask = 0xf0;
#endif
#if STANDIN_ABI >= 121
    param.extend_param.n_batch = 1;
#endif
    return param;
}

static void record_param(const Param *param) {
    char hex[2 * sizeof *param + 1];
    for (size_t at = 0; at < sizeof *param; at++) sprintf(hex + 2 * at, "%02x", ((const unsigned char *)param)[at]);
    record("{\"call\": \"init\", \"context\": %d, \"max_new_tokens\": %d, \"top_k\": %d, \"temperature\": %g, "
           "\"repeat_penalty\": %g, \"domain\": %d, \"bytes\": \"%s\""
#if STANDIN_ABI >= 120
           ", \"n_keep\": %d, \"cpus\": %d, \"mask\": %u, \"embed_flash\": %d"
#endif
           "}",
           param->max_context_len, param->max_new_tokens, param->top_k, param->temperature, param->repeat_penalty,
           param->extend_param.base_domain_id, hex
#if STANDIN_ABI >= 120
           , param->n_keep, param->extend_param.enabled_cpus_num, param->extend_param.enabled_cpus_mask,
           param->extend_param.embed_flash
#endif
    );
}

/* known(log): airockchip/rknn-llm#335: what rkllm_init prints about versions, model and limits */
/* known(log): NotPunchnox/rkllama#60: "max_context[%d] must be less than the model's max_context_limit[%d]" */
/* known(report): airockchip/rknn-llm#522: in 1.3.0 a second rkllm_init without enough memory crashes */
/* known(report): airockchip/rknn-llm#156: older releases return 0 after a failed load */
/* known(log): airockchip/rknn-llm#129: a load that failed, and the program went on as if it had not */
/* known(report): airockchip/rknn-llm#287: rkllm_init returns -1 without a reason */
/* known(guess): a handle is written before the load has worked, and left behind by one that fails */
/* known(guess): a null handle after a load that returned 0; another project says so, no address */
static int init(void **handle, const Param *param, ResultCallback callback, void *userdata) {
    if (!readable(handle, sizeof *handle)) return violated("the handle's place cannot be written");
    *handle = NULL;
    if (check_param(param)) return -1;
    if (!callback) return violated("there is no callback");
    record_param(param);
    Script script;
    if (!read_script(&script, param->model_path)) {
        fprintf(stderr, "E rkllm: failed to open %s\n", param->model_path);
        return -1;
    }
    printf("I rkllm: rkllm-runtime version: %s, rknpu driver version: 0.9.8, platform: %s\n", VERSION, script.platform);
    /* As early as can be, and left behind by a load that fails: nobody may use it before the load has worked. */
    Model *model = calloc(1, sizeof *model);
    model->loading = 1;
    *handle = model;
    rest(script.load_ms * 1000);
    if (!strcmp(script.fail, "segfault") || (script.once && inits++)) raise(SIGSEGV);
    if (!strcmp(script.fail, "null")) {
        *handle = NULL;
        return 0;
    }
    if (script.fail[0]) return complain(script.fail);
    if (param->max_context_len > script.limit) {
        fprintf(stderr, "E rkllm: max_context[%d] must be less than the model's max_context_limit[%ld]\n",
                param->max_context_len, script.limit);
        return -1;
    }
    model->script = script;
    model->param = *param;
    model->param.model_path = NULL;
    model->callback = callback;
    model->userdata = userdata;
    snprintf(model->prefix, sizeof model->prefix, "<user>");
    snprintf(model->postfix, sizeof model->postfix, "<assistant>");
    printf("I rkllm: loading rkllm model from %s\n", param->model_path);
    printf("I rkllm: rkllm-toolkit version: 1.2.3, max_context_limit: %ld, npu_core_num: 3, target_platform: %s, "
           "model_dtype: W8A8\n", script.limit, script.platform);
    model->loading = 0;
    return 0;
}

/* known(header): rkllm.h 1.3.0: rkllm_init takes a structure of three callbacks */
#if STANDIN_ABI >= 130
int rkllm_init(void **handle, const Param *param, const Callbacks *callbacks) {
    if (!readable(callbacks, sizeof *callbacks)) return violated("RKLLMCallback cannot be read");
    if (callbacks->tokenizer || callbacks->embed) return violated("a callback is given that is not implemented");
    return init(handle, param, callbacks->result, callbacks->result_userdata);
}
#else
int rkllm_init(void **handle, const Param *param, ResultCallback callback) {
    return init(handle, param, callback, NULL);
}
#endif

/* known(guess): destroying a handle that runs, loads or is none goes wrong */
int rkllm_destroy(void *handle) {
    if (!readable(handle, sizeof(Model))) return violated("destroy without a handle");
    if (((Model *)handle)->loading) return violated("destroy of a handle whose load has not worked");
    if (((Model *)handle)->running) return violated("destroy while it runs");
    record("{\"call\": \"destroy\"}");
    free(handle);
    return 0;
}

/* known(guess): what rkllm_load_lora prints about a missing file */
int rkllm_load_lora(void *handle, const LoraAdapter *adapter) {
    Model *model = handle;
    if (!readable(adapter, sizeof *adapter) || !is_text(adapter->path, 4096) || !is_text(adapter->name, 64))
        return violated("RKLLMLoraAdapter cannot be read");
    if (!between(adapter->scale, -10, 10)) return violated("the adapter's scale is out of range");
    if (access(adapter->path, R_OK)) {
        fprintf(stderr, "E rkllm: failed to open lora %s\n", adapter->path);
        return -1;
    }
    snprintf(model->lora, sizeof model->lora, "%s", adapter->name);
    record("{\"call\": \"load_lora\", \"name\": \"%s\", \"scale\": %g}", adapter->name, adapter->scale);
    return 0;
}

/* known(header): rkllm.h 1.2.0: a template has a system prompt, a prefix and a postfix */
/* known(guess): a new chat template empties the cache; noted without an address of its own */
#if STANDIN_ABI >= 120
int rkllm_set_chat_template(void *handle, const char *system, const char *prefix, const char *postfix) {
    Model *model = handle;
    if (!is_text(system, 512) || !is_text(prefix, 512) || !is_text(postfix, 512))
        return violated("a part of the chat template is no text");
    snprintf(model->system, sizeof model->system, "%s", system);
    snprintf(model->prefix, sizeof model->prefix, "%s", prefix);
    snprintf(model->postfix, sizeof model->postfix, "%s", postfix);
    model->cached = 0;
    record("{\"call\": \"set_chat_template\"}");
    return 0;
}
#endif

/* -- the interface: the cache */

#if STANDIN_ABI >= 120
static int clear(Model *model) {
    if (model->running) return violated("the cache is cleared while it runs");
    model->cached = 0;
    record("{\"call\": \"clear\"}");
    return 0;
}
#endif

/* known(header): rkllm.h 1.2.0: rkllm_clear_kv_cache takes two arguments */
/* known(header): rkllm.h 1.2.1 to 1.3.0: rkllm_clear_kv_cache takes four arguments */
#if STANDIN_ABI == 120
int rkllm_clear_kv_cache(void *handle, int keep_system) {
    (void)keep_system;
    return clear(handle);
}
#elif STANDIN_ABI > 120
int rkllm_clear_kv_cache(void *handle, int keep_system, int *start, int *end) {
    (void)keep_system;
    if (start || end) return violated("a range is cleared without a pause");
    return clear(handle);
}

int rkllm_get_kv_cache_size(void *handle, int *sizes) {
    if (!readable(sizes, sizeof *sizes)) return violated("the sizes have no place");
    *sizes = ((Model *)handle)->cached;
    return 0;
}
#endif

/* known(guess): what is in a prompt cache's file, and what is printed about one that cannot be used */
static const char cache_magic[] = "RKCACHE1";

static int save_cache(const Model *model, const char *path) {
    FILE *file = fopen(path, "wbe");
    if (!file) {
        fprintf(stderr, "E rkllm: failed to open prompt cache %s\n", path);
        return -1;
    }
    fwrite(cache_magic, 1, 8, file);
    fwrite(&model->cached, sizeof model->cached, 1, file);
    fwrite(model->cache, sizeof *model->cache, model->cached, file);
    fclose(file);
    record("{\"call\": \"save_cache\", \"tokens\": %d}", model->cached);
    return 0;
}

int rkllm_load_prompt_cache(void *handle, const char *path) {
    Model *model = handle;
    if (model->running) return violated("a cache is loaded while it runs");
    if (!is_text(path, 4096)) return violated("the cache's path is no text");
    FILE *file = fopen(path, "rbe");
    char magic[8];
    int count = 0;
    bool good = file && fread(magic, 1, 8, file) == 8 && !memcmp(magic, cache_magic, 8) &&
                fread(&count, sizeof count, 1, file) == 1 && count <= LONGEST &&
                fread(model->cache, sizeof *model->cache, count, file) == (size_t)count;
    if (file) fclose(file);
    if (!good) {
        fprintf(stderr, "E rkllm: failed to load prompt cache %s\n", path);
        return -1;
    }
    model->cached = count;
    record("{\"call\": \"load_cache\", \"tokens\": %d}", count);
    return 0;
}

int rkllm_release_prompt_cache(void *handle) {
    (void)handle;
    record("{\"call\": \"release_cache\"}");
    return 0;
}

/* -- the interface: running */

typedef struct {
    Model *model;
    void *userdata;
    int32_t tokens[LONGEST];
    int length, prompt, evaluated, answered, pending_bytes, paused, stopped;
    char pending[8];
    double started_ms, first_ms;
} Run;

/* known(guess): answers of a callback: 0 goes on, 1 pauses, 2 frees; noted without an address */
static void give(Run *run, Result *result, int state) {
#if STANDIN_ABI >= 121
    int answer = run->model->callback(result, run->userdata, state);
    if (answer == 1 && state != RUN_FINISH) run->paused = 1;
    if (answer < 0 || answer > 2) violated("a callback answered what it may not");
#else
    run->model->callback(result, run->userdata, state);
#endif
}

/* known(guess): an abort ends a run after its present token; an abort of no run fails, or ends the next run */
static int halted(Run *run) {
    if (run->model->aborted) {
        run->stopped = 1;
        if (run->model->script.sticky) run->model->aborted = 0;
    }
    return run->stopped || run->paused;
}

/* known(header): rkllm.h 1.2.0: state WAITING stands for a character that is not whole */
/* known(guess): the text of a callback in state WAITING: none, or the bytes */
/* known(guess): one callback for each token; noted without an address */
static void give_token(Run *run, int32_t token) {
    Result result;
    memset(&result, 0, sizeof result);
    result.token_id = token;
    int byte = token - FIRST_BYTE;
    if (byte < 0 || byte > 255) {
        result.text = "";
        give(run, &result, RUN_NORMAL);
        return;
    }
    int whole = byte < 0x80 ? 1 : byte >= 0xf0 ? 4 : byte >= 0xe0 ? 3 : byte >= 0xc0 ? 2 : 0;
    run->pending[run->pending_bytes++] = (char)byte;
    run->pending[run->pending_bytes] = 0;
    static __thread int expected;
    if (whole) expected = whole;
    bool complete = run->pending_bytes >= expected;
    if (!strcmp(run->model->script.waiting, "bytes")) {
        char single[2] = {(char)byte, 0};
        result.text = single;
        give(run, &result, complete ? RUN_NORMAL : RUN_WAITING);
    } else {
        result.text = complete ? run->pending : NULL;
        give(run, &result, complete ? RUN_NORMAL : RUN_WAITING);
    }
    if (complete) run->pending_bytes = 0;
}

/* known(report): airockchip/rknn-llm#432: the matching prefix of the tokens is used again */
/* known(guess): at least the last token of a prompt is evaluated again */
static void prefill(Run *run) {
    Model *model = run->model;
    int shared = 0, most = run->length - 1 < model->cached ? run->length - 1 : model->cached;
    while (shared < most && run->tokens[shared] == model->cache[shared]) shared++;
    if (model->script.prefill_all) shared = 0;
    run->evaluated = run->length - shared;
    for (int done = 0; done < run->evaluated && !model->aborted; done += 16)
        rest(model->script.prefill_us * (run->evaluated - done < 16 ? run->evaluated - done : 16));
    memcpy(model->cache, run->tokens, run->length * sizeof *run->tokens);
    model->cached = run->length;
    run->first_ms = now_ms();
}

static bool asks_for(const Run *run, const char *word) {
    int32_t wanted[64];
    int length = to_tokens(word, wanted, 0);
    return memmem(run->tokens, run->prompt * sizeof *wanted, wanted, length * sizeof *wanted) != NULL;
}

/* known(guess): a run may hang, crash or report an error after any token */
/* known(report): airockchip/rknn-llm#534: 1.3.0 takes a wrong end token from older models and never stops */
/* What the script wants to go wrong, or the request: "#crash", "#hang" or "#error" in its text, after two tokens. */
static int go_wrong(const Run *run) {
    const Script *script = &run->model->script;
    bool third = run->answered == 2;
    if (script->crash_after >= 0 ? run->answered >= script->crash_after : third && asks_for(run, "#crash")) {
        fprintf(stderr, "stand-in: reading where nothing is\n");
        raise(SIGSEGV);
    }
    while (script->hang_after >= 0 ? run->answered >= script->hang_after : third && asks_for(run, "#hang")) rest(1000000);
    return script->error_after >= 0 ? run->answered >= script->error_after : third && asks_for(run, "#error");
}

/* A text with "#fail-" and the name of a failure is refused with that failure's message. */
static int refused(const Run *run) {
    char word[64];
    for (size_t each = 0; each < sizeof failures / sizeof *failures; each++) {
        snprintf(word, sizeof word, "#fail-%s", failures[each].name);
        if (asks_for(run, word)) return complain(failures[each].name);
    }
    return asks_for(run, "#fail-silent") ? -1 : 0;
}

static bool prints(const Run *run, const char *what) {
    char word[24];
    snprintf(word, sizeof word, "#%s", what);
    return !strcmp(run->model->script.prints, what) || asks_for(run, word);
}

/* known(log): airockchip/rknn-llm#290: "matmul(w8a8) run failed" and "Your rknpu driver version is too low" */
/* known(log): airockchip/rknn-llm#85: "failed to submit!" with op id, flags and int status 0x200 */
/* known(report): airockchip/rknn-llm#449: an answer comes beside "matmul(w8a8) run failed" */
/* What real runtimes print while they return success. "#matmul": RKLLM with an NPU driver that is too old, for every
 * token. "#submit": librknnrt when the NPU refused a job, once in an answer. "#warn": no error. */
static void print_errors(const Run *run) {
    if (prints(run, "matmul")) fprintf(stderr, "E rkllm: matmul(w8a8) run failed\n");
    if (run->answered <= 1 && prints(run, "submit"))
        fprintf(stderr, "E RKNN: [17:19:34.670] failed to submit!, op id: 0, op name: MatMul, flags: 0x5, task start: 0, "
                        "task number: 1, run task counter: 0, int status: 0x200, please try updating to the latest "
                        "version of the toolkit2 and runtime\n");
    if (run->answered <= 1 && prints(run, "warn"))
        fprintf(stderr, "W rkllm: Warning: Your rknpu driver version is too low, please upgrade to 0.9.7\n");
}

static int generate(Run *run, int limit) {
    Model *model = run->model;
    while (!halted(run)) {
        print_errors(run);
        if (go_wrong(run)) {
            Result result = {0};
            give(run, &result, RUN_ERROR);
            return -1;
        }
        int32_t token = next_token(&model->script, run->tokens, run->length);
        if (token == END && model->script.endless) token = '.' + FIRST_BYTE;
        if (token == END || (limit > 0 && run->answered >= limit) || run->length >= LONGEST - 1) return 0;
        if (run->answered) rest(model->script.decode_us);
        if (halted(run)) return 0;
        run->answered++;
        run->tokens[run->length++] = token;
        if (run->answered > 1) model->cache[model->cached++] = run->tokens[run->length - 2];
        give_token(run, token);
    }
    return 0;
}

/* known(header): rkllm.h 1.2.0: hidden states are num_tokens rows of embd_size */
/* known(guess): hidden states of all tokens come in one callback of state NORMAL, valid inside it; no address */
static void give_hidden(Run *run) {
    print_errors(run);
    float *states = malloc(sizeof(float) * EMBEDDING * run->length);
    fill_hidden(run->tokens, run->length, states);
    Result result = {.last_hidden_layer = {states, EMBEDDING, run->length}};
    give(run, &result, STANDIN_ABI == 114 ? RUN_HIDDEN_114 : RUN_NORMAL);
    memset(states, 0xff, sizeof(float) * EMBEDDING * run->length); /* valid inside the callback only */
    free(states);
}

/* known(header): rkllm.h 1.2.0: logits are num_tokens rows of vocab_size */
/* known(guess): logits of the last token alone come in one callback; nobody is known to have used it */
#if STANDIN_ABI >= 120
static void give_logits(Run *run) {
    print_errors(run);
    float *logits = malloc(sizeof(float) * VOCABULARY);
    fill_logits(&run->model->script, run->tokens, run->length, logits);
    Result result = {.logits = {logits, VOCABULARY, 1}};
    give(run, &result, RUN_NORMAL);
    memset(logits, 0xff, sizeof(float) * VOCABULARY);
    free(logits);
}
#endif

/* known(header): rkllm.h 1.3.0: a result has times, numbers of tokens and memory of a run */
/* known(guess): times come with FINISH alone; the first token belongs to the prefill */
/* known(guess): an aborted run gives FINISH, or does not */
static void finish(Run *run) {
    Result result;
    memset(&result, 0, sizeof result);
#if STANDIN_ABI >= 121
    double end = now_ms();
    result.perf.prefill_time_ms = (float)(run->first_ms - run->started_ms);
    result.perf.prefill_tokens = run->evaluated;
    result.perf.generate_time_ms = (float)(end - run->first_ms);
    result.perf.generate_tokens = run->answered > 1 ? run->answered - 1 : 0;
    result.perf.memory_usage_mb = 123.0f;
#endif
    give(run, &result, RUN_FINISH);
}

static int read_input(Run *run, const Input *input) {
    Model *model = run->model;
    if (input->input_type == INPUT_TOKEN) {
        memcpy(run->tokens, input->data.token.input_ids, input->data.token.n_tokens * sizeof(int32_t));
        run->length = (int)input->data.token.n_tokens;
    } else {
        const char *text = input->input_type == INPUT_PROMPT ? input->data.prompt : input->data.multimodal.prompt;
        run->tokens[run->length++] = BEGIN;
        run->length = to_tokens(model->system, run->tokens, run->length);
        run->length = to_tokens(model->prefix, run->tokens, run->length);
        run->length = to_tokens(text, run->tokens, run->length);
        run->length = to_tokens(model->postfix, run->tokens, run->length);
    }
    run->prompt = run->length;
    return run->length >= model->param.max_context_len ? complain("prompt") : 0;
}

static int run_limit(const Model *model, const InferParam *infer) {
#if STANDIN_ABI >= 130
    if (infer->max_new_tokens > 0) return infer->max_new_tokens;
#else
    (void)infer;
#endif
    return model->param.max_new_tokens;
}

static void record_run(const Run *run, const Input *input, const InferParam *infer) {
    record("{\"call\": \"run\", \"mode\": %d, \"type\": %d, \"tokens\": %d, \"lora\": %d"
#if STANDIN_ABI >= 130
           ", \"limit\": %d, \"top_k\": %d, \"temperature\": %g, \"repeat_penalty\": %g"
#endif
#if STANDIN_ABI >= 121
           ", \"thinking\": %d"
#endif
           "}",
           infer->mode, input->input_type, run->length, infer->lora_params != NULL
#if STANDIN_ABI >= 130
           , infer->max_new_tokens, infer->sampling_params ? infer->sampling_params->top_k : 0,
           infer->sampling_params ? infer->sampling_params->temperature : 0,
           infer->sampling_params ? infer->sampling_params->repeat_penalty : 0
#endif
#if STANDIN_ABI >= 121
           , input->enable_thinking
#endif
    );
}

static int execute(Run *run, const Input *input, const InferParam *infer) {
    Model *model = run->model;
    if (check_input(input) || check_infer(infer, model) || read_input(run, input)) return -1;
    record_run(run, input, infer);
    if (refused(run)) return -1;
    prefill(run);
    int status = 0;
    if (infer->mode == MODE_GENERATE)
        status = generate(run, run_limit(model, infer));
    else if (!halted(run) && infer->mode == MODE_HIDDEN)
        give_hidden(run);
#if STANDIN_ABI >= 120
    else if (!halted(run))
        give_logits(run);
#endif
    const PromptCacheParam *cache = infer->prompt_cache_params;
    if (!status && cache && cache->save_prompt_cache) status = save_cache(model, cache->path);
    if (!status && (!halted(run) || model->script.abort_finish)) finish(run);
    return status;
}

/* known(report): airockchip/rknn-llm#383: a handle runs one request at a time */
/* known(guess): rkllm_run returns after the last callback, and -1 where it refuses */
int rkllm_run(void *handle, const Input *input, const InferParam *infer, void *userdata) {
    Model *model = handle;
    if (!readable(handle, sizeof *model)) return violated("run without a handle");
    if (model->loading) return violated("run on a handle whose load has not worked");
    if (atomic_exchange(&model->running, 1)) return violated("a second run on a handle that is running");
    if (!model->script.sticky) model->aborted = 0;
    Run *run = calloc(1, sizeof *run);
    run->model = model;
    run->userdata = userdata;
    run->started_ms = now_ms();
    int status = execute(run, input, infer);
    free(run);
    model->running = 0;
    return status;
}

/* known(report): airockchip/rknn-llm#320: rkllm_run_async hangs in 1.2.1 */
int rkllm_run_async(void *handle, const Input *input, const InferParam *infer, void *userdata) {
    (void)handle, (void)input, (void)infer, (void)userdata;
    return violated("run_async is used, which hung in 1.2.1");
}

int rkllm_abort(void *handle) {
    Model *model = handle;
    if (model->loading) return violated("abort on a handle whose load has not worked");
    if (!model->running && !model->script.sticky) return -1;
    model->aborted = 1;
    record("{\"call\": \"abort\"}");
    return 0;
}

/* known(header): rkllm.h 1.2.0: rkllm_is_running gives 0 while a task runs */
/* known(header): rkllm.h 1.3.0: rkllm_is_running gives 1 while a task runs */
int rkllm_is_running(void *handle) {
    int running = ((Model *)handle)->running;
    return STANDIN_ABI >= 130 ? running : !running;
}
