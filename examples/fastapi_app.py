"""The engine in one's own FastAPI app, next to other work: an endpoint of one's own, and OpenAI's under /llm.

pip install 'fastllm-runtime[server]' fastapi
uvicorn fastapi_app:app

curl localhost:8000/summary -H 'content-type: application/json' -d '{"text": "The os module ..."}'
curl localhost:8000/llm/v1/models
curl localhost:8000/time
"""

from __future__ import annotations

import contextlib
import datetime
from collections.abc import AsyncIterator

from fastapi import FastAPI
from pydantic import BaseModel

from fastllm import AsyncLLM, SamplingParams
from fastllm.server.app import create_app

llm = AsyncLLM(max_num_seqs=32)
openai_app = create_app(llm)


@contextlib.asynccontextmanager
async def lifespan(_: FastAPI) -> AsyncIterator[None]:
    await openai_app.state.warm_up()  # /llm/ready says 200 from here on
    yield
    llm.close()


app = FastAPI(lifespan=lifespan)
app.mount("/llm", openai_app)


@app.get("/time")
async def now() -> dict[str, str]:
    """The rest of the app: it answers while the model works, whose steps run in a native thread."""
    return {"time": datetime.datetime.now(datetime.timezone.utc).isoformat()}


class Text(BaseModel):
    text: str


@app.post("/summary")
async def summary(body: Text) -> dict[str, str]:
    """Shares batches with everything that comes in under /llm."""
    params = SamplingParams(temperature=0, max_tokens=48)
    async for output in llm.chat([{"role": "user", "content": f"Summarize: {body.text}"}], params):
        last = output
    return {"summary": last.outputs[0].text}
