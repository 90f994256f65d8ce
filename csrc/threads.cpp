// A small pool of threads for parallel_for.
//
// Not OpenMP, because its loops end when every thread has arrived: on a machine that is shared, with another process on
// one of the cores, each loop then waits for the scheduler (24 ms instead of 3 for the forward pass of the splats,
// measured). Here a loop ends when its tasks are done; a thread that comes late finds nothing to do. It also survives
// fork(), as data loaders use it, and needs no run-time library.
#include <pthread.h>

#include <atomic>
#include <condition_variable>
#include <exception>
#include <mutex>
#include <thread>

#include "common.h"

namespace gsmae {
namespace {

thread_local int current_index = 0;
thread_local bool inside = false;

struct Job {
    int64_t count, grain;
    int threads;
    void (*task)(const void*, int64_t);
    const void* body;
    std::atomic<int64_t> next{0};
    std::mutex error_mutex;
    std::exception_ptr error;

    void work() {
        inside = true;
        for (int64_t first; (first = next.fetch_add(grain)) < count;) {
            try {
                for (int64_t i = first; i < count && i < first + grain; ++i) task(body, i);
            } catch (...) {
                next = count;
                std::lock_guard<std::mutex> lock(error_mutex);
                if (!error) error = std::current_exception();
            }
        }
        inside = false;
    }
};

class Pool {
   public:
    // False when another caller is using the pool.
    bool run(Job& job) {
        std::unique_lock<std::mutex> turn(turn_, std::try_to_lock);
        if (!turn.owns_lock()) return false;
        {
            std::lock_guard<std::mutex> lock(mutex_);
            while (workers_ < job.threads - 1) {
                ++workers_;
                std::thread(&Pool::live, this, workers_).detach();
            }
            job_ = &job;
            posted_.store(posted_.load() + 1);
        }
        wake_.notify_all();
        job.work();
        std::unique_lock<std::mutex> lock(mutex_);
        job_ = nullptr;  // from here on nobody joins
        done_.wait(lock, [&] { return working_ == 0; });
        return true;
    }

   private:
    void live(int index) {
        current_index = index;
        uint64_t seen = 0;
        for (;;) {
            linger(seen);
            std::unique_lock<std::mutex> lock(mutex_);
            wake_.wait(lock, [&] { return posted_ != seen; });
            seen = posted_;
            Job* job = job_;
            if (job == nullptr || index >= job->threads) continue;
            ++working_;
            lock.unlock();
            job->work();
            lock.lock();
            if (--working_ == 0) done_.notify_one();
        }
    }

    // Loops follow each other closely inside a kernel: look out for the next one for some microseconds, then sleep.
    void linger(uint64_t seen) const {
        for (int i = 0; i < 500 && posted_.load(std::memory_order_relaxed) == seen; ++i) {
#if defined(__x86_64__) || defined(__i386__)
            __builtin_ia32_pause();
#elif defined(__aarch64__)
            asm volatile("yield");
#endif
        }
    }

    std::mutex turn_;   // held by the caller whose job it is
    std::mutex mutex_;  // guards what follows
    std::condition_variable wake_, done_;
    std::atomic<uint64_t> posted_{0};
    Job* job_ = nullptr;
    int workers_ = 0, working_ = 0;
};

// Never destroyed: its threads sleep in it until the process ends. A forked child has none of them, so it starts anew.
Pool* pool = [] {
    pthread_atfork(nullptr, nullptr, [] { pool = new Pool; });
    return new Pool;
}();

}  // namespace

int thread_index() { return current_index; }

void run_parallel(int64_t count, int threads, int64_t grain, void (*task)(const void*, int64_t), const void* body) {
    Job job{count, grain, threads, task, body, {}, {}, {}};
    if (inside || !pool->run(job))
        for (int64_t i = 0; i < count; ++i) task(body, i);
    else if (job.error)
        std::rethrow_exception(job.error);
}

}  // namespace gsmae
