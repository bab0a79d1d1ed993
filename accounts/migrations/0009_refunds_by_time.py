"""Nothing waits while it is built, however many entries there are; begun anew after a crash, it leaves no half index."""

from django.contrib.postgres.operations import AddIndexConcurrently
from django.db import migrations, models


class Migration(migrations.Migration):
    atomic = False

    dependencies = [
        ('accounts', '0008_notices'),
    ]

    operations = [
        migrations.RunSQL('DROP INDEX CONCURRENTLY IF EXISTS transaction_refunds', migrations.RunSQL.noop),
        AddIndexConcurrently(
            model_name='credittransaction',
            index=models.Index(condition=models.Q(('kind', 'refund')), fields=['created_at'], include=('reference',), name='transaction_refunds'),
        ),
    ]
