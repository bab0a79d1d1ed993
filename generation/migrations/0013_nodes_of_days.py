from django.db import migrations, models


class Migration(migrations.Migration):

    dependencies = [
        ('generation', '0012_node_address'),
    ]

    operations = [
        migrations.AddField(
            model_name='dayfigures',
            name='nodes',
            field=models.JSONField(help_text='Empty: not added up yet.', null=True),
        ),
    ]
